"""A grid of runs of the VL experiment: what it trains, that pictures are read once, and its table."""

import pandas as pd
import pytest
from transformers import Trainer

from deltaw.adapters import DataError, OptionError
from deltaw.trainers.vl import GridError, VLResult, VLSettings, grid, grid_table, train_grid
from deltaw.trainers.vl import experiment as vl


def settings(scenes, **options):
    chosen = {"method": "lora", "epochs": 1, "batch_size": 12, "answer_length": 6, "tasks": ("vqa", "nlvr")}
    return VLSettings(data=(str(scenes),), **chosen | options)


def test_it_trains_every_combination_and_goes_on(scenes, tmp_path, monkeypatch):
    out, wanted = tmp_path / "grid", {"methods": ["bora", "ft"], "ranks": [2, 4], "rates": {"ft": 5e-4}}
    trained, loaded = [], []
    train, load = Trainer.train, vl.load_features

    def interrupted(self, *args, **kwargs):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(1)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(vl, "load_features", lambda *args, **kwargs: loaded.append(1) or load(*args, **kwargs))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_grid(settings(scenes), out, **wanted, progress=False)
    results = train_grid(settings(scenes), out, **wanted, progress=False)
    assert len(loaded) == 2  # once a call, whatever the number of runs
    assert [result.out for result in results] == ["bora-r2-s0", "bora-r4-s0", "ft-s0"]
    assert [result.learning_rate for result in results] == [3e-3, 3e-3, 5e-4]
    assert train_grid(settings(scenes), out, **wanted, progress=False) == results
    assert len(loaded) == 2  # there was nothing to do
    assert sorted(path.name for path in out.iterdir()) == [*(r.out for r in results), "results.csv", "results.md"]
    table = pd.read_csv(out / "results.csv")
    assert table["method"].tolist() == ["bora", "bora", "ft", "prior"]
    assert table["vqa_mean"].tolist() == [*(r.scores["vqa"] for r in results), results[0].prior["vqa"]]
    assert (out / "results.md").read_text().count("\n") == 6


def test_table_is_over_the_seeds_and_ends_with_the_prior():
    def result(method, rank, seed, vqa, caption):
        scores, prior = {"vqa": vqa, "caption": caption}, {"vqa": 0.25, "caption": 0.75}
        mean, n_dev = (vqa + caption) / 2, {"vqa": 7, "caption": 8}
        return VLResult(method, "x", 5000, 0.5, scores, mean, prior, n_dev, 2.0, 90.0, 1e-3, 20, seed, rank)

    ft = result("ft", None, 0, 0.5, 0.9)
    table = grid_table([result("lora", 4, 0, 0.2, 1.0), ft, result("lora", 4, 1, 0.4, 1.2)])
    assert table["method"].tolist() == ["lora", "ft", "prior"]
    lora, prior = table.iloc[0], table.iloc[2]
    assert lora["vqa_mean"] == pytest.approx(0.3)
    assert lora["vqa_std"] == pytest.approx(0.02**0.5)
    assert lora["average_mean"] == pytest.approx(0.7)
    assert (lora["seeds"], lora["trainable"]) == (2, 5000)
    assert (prior["vqa_mean"], prior["caption_mean"], prior["average_mean"]) == (0.25, 0.75, 0.5)
    assert prior[["rank", "trainable", "seeds", "vqa_std", "peak_megabytes"]].isna().all()
    lines = grid.grid_page(table).splitlines()
    assert lines[0].split()[:8] == ["method", "rank", "trainable", "share", "%", "vqa", "CIDEr", "average"]
    assert "0.300 ± 0.141" in lines[2]
    assert lines[4].split() == ["prior", "0.250", "0.750", "0.500"]
    assert grid_table([]).empty
    rows = [line.split() for line in grid.results_table(ft).splitlines()]
    assert rows[3:] == [
        ["vqa", "0.500", "0.250", "7"],
        ["caption", "0.900", "0.750", "8"],
        ["average", "0.700", "0.500"],
    ]


def test_mistakes_are_found_before_anything_is_trained(scenes, tmp_path):
    out = tmp_path / "grid"
    for message, wanted in {
        "bora: rank 500": {"methods": ["lora", "bora"], "options": {"bora": {"rank": 500}}},
        "is a learning rate for 'dora', which is not among the methods lora": {"rates": {"dora": 1e-3}},
        "there is no method 'lorax'": {"rates": {"lorax": 1e-3}},
    }.items():
        with pytest.raises(OptionError, match=message):
            train_grid(settings(scenes), out, **wanted, progress=False)
    with pytest.raises(DataError, match="nowhere"):
        train_grid(settings(scenes, vision="nowhere.h5"), out, progress=False)
    assert not out.exists()


def test_a_failing_run_leaves_the_others(scenes, tmp_path, monkeypatch):
    train = grid.train_vl

    def failing(run, out, **kwargs):
        if run.method == "ft":
            raise RuntimeError("out of memory")
        return train(run, out, **kwargs)

    monkeypatch.setattr(grid, "train_vl", failing)
    with pytest.raises(GridError, match="ft-s0 failed: RuntimeError: out of memory"):
        train_grid(settings(scenes), tmp_path / "grid", methods=["ft", "lora"], progress=False)
    assert pd.read_csv(tmp_path / "grid" / "results.csv")["method"].tolist() == ["lora", "prior"]

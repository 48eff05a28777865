"""A grid of runs: what it trains, that it goes on, its table, and what it refuses before it trains."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from transformers import Trainer

from deltaw.adapters import DataError, OptionError, RecordError
from deltaw.analysis import Trajectory
from deltaw.cli import main
from deltaw.trainers.cola import ColaResult, ColaSettings, GridError, grid, grid_table, train_grid
from deltaw.trainers.cola.data import BUILTIN
from deltaw.trainers.cola.grid import grid_runs

MODEL = str(BUILTIN / "model")
NAMES = ["bora-r2-s0", "bora-r2-s1", "bora-r4-s0", "bora-r4-s1", "ft-s0", "ft-s1"]


def settings(small, **options):
    chosen = {"method": "lora", "epochs": 1, "batch_size": 16, "record_every": 1, "learning_rate": 1e-3} | options
    return ColaSettings(model=MODEL, data=str(small), **chosen)


def call(small, out, *more):
    arguments = ["train", "cola", "--model", MODEL, "--data", small, "--epochs", 1, "--batch-size", 16, "-o", out]
    return main([str(argument) for argument in (*arguments, *more)])


def test_it_trains_every_combination_and_goes_on(small, tmp_path, monkeypatch):
    out, wanted = tmp_path / "grid", {"methods": ["bora", "ft"], "ranks": [2, 4], "seeds": [0, 1]}
    trained = []
    train = Trainer.train

    def interrupted(self, *args, **kwargs):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(1)
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_grid(settings(small), out, **wanted, progress=False)
        trained.clear()
        results = train_grid(settings(small), out, **wanted, progress=False)
        assert len(trained) == 3  # three were done before the interruption
        assert [result.out for result in results] == NAMES
        assert [result.rank for result in results] == [2, 2, 4, 4, None, None]
        assert train_grid(settings(small), out, **wanted, progress=False) == results
        assert len(trained) == 3
    assert sorted(path.name for path in out.iterdir()) == sorted([*NAMES, "results.csv", "results.md"])
    run = Trajectory.open(out / "bora-r4-s1")
    assert run.manifest.info["settings"]["seed"] == 1
    assert run.manifest.info["settings"]["options"]["rank"] == 4
    table = grid_table(results)
    assert list(zip(table["method"], table["rank"].fillna(0), table["seeds"], strict=True)) == [
        ("bora", 2, 2),
        ("bora", 4, 2),
        ("ft", 0, 2),
    ]
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv"), table, check_dtype=False)
    assert (out / "results.md").read_text().count("\n") == 5
    more = train_grid(settings(small), out, methods=["lora"], seeds=[3], progress=False)  # adds to what is there
    assert [result.out for result in more] == ["lora-r8-s3"]


def test_table_is_over_the_seeds():
    def result(method, rank, seed, best, seconds=1.0, peak=10.0):
        return ColaResult(method, "x", 50, 0.5, best, 1, best / 2, 16, seconds, peak, 1e-3, 1, seed, rank)

    results = [result("lora", 4, 0, 0.2), result("ft", None, 0, 0.9), result("lora", 2, 0, 0.1)]
    results += [result("lora", 4, 1, 0.4, 3.0, 30.0), result("lora", 4, 2, 0.6, 9.0, 20.0)]
    table = grid_table(results)
    assert list(table["method"]) == ["lora", "ft", "lora"]
    assert list(table["rank"].fillna(0)) == [4, 0, 2]
    first = table.iloc[0]
    assert first["best_mcc_mean"] == pytest.approx(0.4)
    assert first["best_mcc_std"] == pytest.approx(0.2)
    assert first["final_mcc_std"] == pytest.approx(0.1)
    assert (first["seeds"], first["seconds_per_epoch"], first["peak_megabytes"]) == (3, 3.0, 30.0)
    assert table["best_mcc_std"].isna().tolist() == [False, True, True]
    lines = grid.grid_page(table).splitlines()
    assert "0.400 ± 0.200" in lines[2]
    assert "±" not in lines[3] + lines[4]
    assert grid_table([]).empty


def test_mistakes_are_found_before_anything_is_trained(small, tmp_path):
    out = tmp_path / "grid"
    for message, wanted in {
        "lorax": {"methods": ["lora", "lorax"]},
        "bora: rank 500": {"methods": ["lora", "bora"], "ranks": [4], "options": {"bora": {"rank": 500}}},
        "ft has none": {"methods": ["ft"], "ranks": [4]},
        "lora has no option 'warmup_steps'; it has rank": {"options": {"lora": {"warmup_steps": 3}}},
        "not among the methods lora": {"options": {"dual-lora": {"warmup_steps": 3}}},
        "'diagonal'": {"methods": ["lora", "dora"], "options": {"dora": {"axis": "diagonal"}}},
    }.items():
        with pytest.raises(OptionError, match=message):
            train_grid(settings(small), out, **wanted, progress=False)
    with pytest.raises(DataError, match="nowhere"):
        train_grid(replace(settings(small), data="nowhere"), out, progress=False)
    assert not out.exists()


def test_a_folder_that_holds_something_else_is_refused(small, tmp_path):
    out = tmp_path / "grid"
    train_grid(settings(small), out, seeds=[1], progress=False)
    with pytest.raises(RecordError, match=r"lora-r8-s1.*epochs is 1, not 2"):
        train_grid(settings(small, epochs=2), out, seeds=[0, 1], progress=False)
    assert not (out / "lora-r8-s0").exists()
    with pytest.raises(RecordError, match=r"'base.safetensors' and is no grid"):
        train_grid(settings(small), out / "lora-r8-s1", seeds=[0, 1], progress=False)
    (out / "thesis.tex").write_text("")
    with pytest.raises(RecordError, match=r"thesis\.tex"):
        train_grid(settings(small), out, seeds=[0, 1], progress=False)


def test_options_for_all_and_for_one():
    base = ColaSettings(method="lora", options={"alpha": 4.0, "dropout": 0.1})
    runs = grid_runs(base, methods=["ft", "dual-lora", "lora"], ranks=[2], options={"dual-lora": {"warmup_steps": 5}})
    assert list(runs) == ["ft-s0", "dual-lora-r2-s0", "lora-r2-s0"]
    methods = {name: run.make_method().options() for name, run in runs.items()}
    assert methods["ft-s0"] == {}
    assert methods["dual-lora-r2-s0"]["warmup_steps"] == 5
    assert methods["lora-r2-s0"] | {"alpha": 4.0, "dropout": 0.1, "rank": 2} == methods["lora-r2-s0"]
    own = grid_runs(base, methods=["lora", "dora"], ranks=[2, 4], options={"dora": {"rank": 3}})
    assert list(own) == ["lora-r2-s0", "lora-r4-s0", "dora-r3-s0"]


def test_a_learning_rate_of_its_own(small, tmp_path, capsys):
    runs = grid_runs(ColaSettings(method="lora", learning_rate=4e-4), methods=["ft", "lora"], rates={"ft": 2e-5})
    assert {name: run.learning_rate for name, run in runs.items()} == {"ft-s0": 2e-5, "lora-r8-s0": 4e-4}
    assert {run.rate() for run in grid_runs(ColaSettings(method="lora"), rates={"lora": 1e-5}).values()} == {1e-5}
    lists = ["--method", "ft,lora", "--rank", "2", "--lr", "4e-4", "--lr", "ft:2e-5", "--json"]
    assert call(small, tmp_path / "grid", *lists) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert [(result["method"], result["learning_rate"]) for result in found] == [("ft", 2e-5), ("lora", 4e-4)]
    assert Trajectory.open(tmp_path / "grid" / "ft-s0").manifest.info["settings"]["learning_rate"] == 2e-5
    with pytest.raises(OptionError, match="there is a learning rate for 'bora', which is not among the methods lora"):
        grid_runs(ColaSettings(method="lora"), rates={"bora": 1e-3})


def test_a_failing_run_leaves_the_others(small, tmp_path, capsys, monkeypatch):
    train = grid.train_cola

    def failing(run, out, **kwargs):
        if run.seed == 1:
            raise RuntimeError("out of\nmemory")
        return train(run, out, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(grid, "train_cola", failing)
        with pytest.raises(GridError, match="1 of 3 runs failed") as caught:
            train_grid(settings(small), tmp_path / "a", seeds=[0, 1, 2], progress=False)
        assert caught.value.failures == {"lora-r8-s1": "RuntimeError: out of memory"}
        assert [result.seed for result in caught.value.results] == [0, 2]
        assert pd.read_csv(tmp_path / "a" / "results.csv")["seeds"].tolist() == [2]
        assert call(small, tmp_path / "b", "--method", "lora", "--seed", "0,1,2", "--json") == 1
        shown = capsys.readouterr()
        assert json.loads(shown.out)["table"][0]["seeds"] == 2
        assert "lora-r8-s1 failed: RuntimeError: out of memory" in shown.err
    assert call(small, tmp_path / "b", "--method", "lora", "--seed", "0,1,2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["table"][0]["seeds"] == 3


def test_command(small, tmp_path, capsys):
    lists = ["--method", "dual-lora,lora", "--method", "ft", "--rank", "2", "--rank", "4"]
    lists += ["--option", "dual-lora:warmup_steps=1"]
    assert call(small, tmp_path / "grid", *lists) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[2:7]] == ["dual-lora", "dual-lora", "lora", "lora", "ft"]
    assert "results.csv" in shown
    assert call(small, tmp_path / "grid", *lists, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["rank"] for row in found["table"]] == [2, 4, 2, 4, None]
    assert {row["best_mcc_std"] for row in found["table"]} == {None}
    assert len(found["results"]) == 5
    one = ["--method", "lora", "--rank", "2", "--seed", "0"]
    assert call(small, tmp_path / "one", *one, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rank"] == 2
    assert (tmp_path / "one" / "result.json").is_file()
    for words, code, wrong in [
        ("is no run", 1, [tmp_path / "grid", *one]),
        ("is no grid", 1, [tmp_path / "one", "--method", "lora,ft"]),
        ("lorax", 2, [tmp_path / "new", "--method", "lora,lorax"]),
        ("'x' is not a valid integer", 2, [tmp_path / "new", "--method", "lora", "--rank", "4,x"]),
        ("empty place", 2, [tmp_path / "new", "--method", "lora", "--seed", "0,,1"]),
        ("by --rank and by --option", 2, [tmp_path / "new", *one, "--option", "rank=4"]),
        ("lora has no option 'width'; it has rank", 2, [tmp_path / "new", *one, "--option", "lora:width=4"]),
    ]:
        assert call(small, *wrong) == code, words
        assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()

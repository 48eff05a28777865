"""``reproduce bora`` from training to verdict, on a corpus small enough for a test."""

import json

import pandas as pd
import pytest
from transformers import Trainer

from deltaw.adapters import OptionError, RecordError
from deltaw.analysis import Trajectory
from deltaw.cli import main
from deltaw.trainers.cola import ColaSettings
from deltaw.trainers.cola.data import BUILTIN
from deltaw.trainers.reproduce import BORA_METHODS, FORMATS, reproduce_bora


def settings(small, **options):
    chosen = {"epochs": 2, "batch_size": 16, "record_every": 1, "learning_rate": 1e-3} | options
    return ColaSettings(method="bora", model=str(BUILTIN / "model"), data=str(small), **chosen)


def test_from_training_to_verdict_and_not_twice(small, tmp_path, monkeypatch, draw_png_alone):
    report = reproduce_bora(tmp_path / "out", settings(small), full_learning_rate=1e-4, progress=False)
    assert [result.method for result in report.results] == list(BORA_METHODS)
    for stem in ("figure2_symmetry", "figure3_updates", "rank_by_layer"):
        for suffix in FORMATS:
            assert (tmp_path / "out" / f"{stem}.{suffix}").stat().st_size > 5000
    consecutive = pd.read_csv(tmp_path / "out" / "changes_consecutive.csv")
    assert set(consecutive.method) == set(BORA_METHODS)
    run = Trajectory.open(tmp_path / "out" / "runs" / "bora")
    expected = run.changes("consecutive")
    pd.testing.assert_series_equal(
        consecutive[consecutive.run == "bora"].delta_m.reset_index(drop=True), expected.delta_m, check_exact=False
    )
    claims = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert len(claims) == len(report.outcomes) > 10
    assert {claim["verdict"] for claim in claims} <= {"agrees", "disagrees", "unclear"}
    page = report.page()
    for words in ("bora", "best MCC", "figure2_symmetry.png", "claims.md"):
        assert words in page

    def train(*_, **__):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(Trainer, "train", train)
    draw_png_alone()
    again = reproduce_bora(tmp_path / "out", settings(small), full_learning_rate=1e-4, progress=False)
    assert again.results == report.results


def test_more_seeds_add_to_it_and_the_intervals_resample_them(small, tmp_path, draw_png_alone):
    draw_png_alone()
    wanted = settings(small, epochs=1)
    one = reproduce_bora(tmp_path / "out", wanted, ["lora", "bora"], progress=False)
    before = (tmp_path / "out" / "runs" / "bora" / "result.json").stat().st_mtime_ns
    both = reproduce_bora(tmp_path / "out", wanted, ["lora", "bora"], seeds=[0, 1], progress=False)
    assert (tmp_path / "out" / "runs" / "bora" / "result.json").stat().st_mtime_ns == before
    assert [(result.out, result.seed) for result in both.results] == [
        ("lora", 0),
        ("lora-s1", 1),
        ("bora", 0),
        ("bora-s1", 1),
    ]
    notes = [{o.claim.sentence: o.note for o in report.outcomes} for report in (one, both)]
    sentence = "BoRA's ΔM is symmetric in rows and columns"
    assert "runs" not in notes[0][sentence]
    assert notes[1][sentence].endswith(", 2 runs of bora")
    assert "seed" in both.page()


def test_other_settings_in_the_same_folder_are_refused(small, tmp_path, draw_png_alone):
    draw_png_alone()
    reproduce_bora(tmp_path / "out", settings(small), ["lora"], progress=False)
    with pytest.raises(RecordError, match="another run"):
        reproduce_bora(tmp_path / "out", settings(small, epochs=3), ["lora"], progress=False)


def test_an_unknown_method_is_named_before_anything_is_trained(small, tmp_path):
    with pytest.raises(OptionError, match="lorax"):
        reproduce_bora(tmp_path / "out", settings(small), ["lora", "lorax"], progress=False)
    assert not (tmp_path / "out").exists()


def test_command(small, tmp_path, capsys, draw_png_alone):
    draw_png_alone()
    arguments = ["reproduce", "bora", "-o", str(tmp_path / "out"), "--methods", "lora,bora", "--epochs", "1"]
    arguments += ["--model", str(BUILTIN / "model"), "--data", str(small), "--batch-size", "16", "--record-every", "1"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in found["results"]] == ["lora", "bora"]
    assert main(arguments) == 0
    assert "figure3_updates.png" in capsys.readouterr().out

"""``reproduce sbora``, ``reproduce dual-lora``, and who gets which option in ``reproduce bora``, on a small corpus."""

import json

import pandas as pd
import pytest
from transformers import Trainer

from deltaw.adapters import GaLore, OptionError, RecordError
from deltaw.analysis import Trajectory
from deltaw.cli import main
from deltaw.trainers.cola import ColaResult, ColaSettings
from deltaw.trainers.cola.data import BUILTIN
from deltaw.trainers.reproduce import FORMATS, bora, reproduce_bora, reproduce_dual_lora, reproduce_sbora
from deltaw.trainers.reproduce.dual_lora import first_ranks


def settings(small, **options):
    chosen = {"epochs": 1, "batch_size": 16, "record_every": 2, "learning_rate": 1e-3} | options
    return ColaSettings(method="lora", model=str(BUILTIN / "model"), data=str(small), **chosen)


@pytest.fixture
def forbidden(monkeypatch, draw_png_alone):
    """Call it, and from then on nothing may be trained, and figures are written as PNG alone."""

    def train(*_, **__):
        raise AssertionError("a finished run was trained again")

    def forbid():
        monkeypatch.setattr(Trainer, "train", train)
        draw_png_alone()

    return forbid


def call(small, *arguments):
    common = ["--model", str(BUILTIN / "model"), "--data", str(small), "--epochs", "1", "--batch-size", "16"]
    return main(["reproduce", *map(str, arguments), *common, "--lr", "1e-3", "--record-every", "2"])


def error_of(capsys, code, expected):
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("deltaw:")]
    assert code == expected, err
    assert lines == err.splitlines()[-1:]
    return lines[0]


def test_sbora_from_training_to_verdict_and_not_twice(small, tmp_path, capsys, forbidden):
    out = tmp_path / "out"
    report = reproduce_sbora(out, settings(small), ("lora", "sbora-fa", "sbora-fb"), ranks=(2, 4), progress=False)
    assert [(one.method, one.rank) for one in report.results] == [
        (method, rank) for method in ("lora", "sbora-fa", "sbora-fb") for rank in (2, 4)
    ]
    for stem in ("figure2_region", "figure3_costs"):
        for suffix in FORMATS:
            assert (out / f"{stem}.{suffix}").stat().st_size > 5000
    regions = pd.read_csv(out / "regions.csv")
    for row in regions.itertuples():
        update = Trajectory.open(out / "runs" / row.run).update(row.module, 3)
        assert row.moved_columns == (update != 0).any(0).sum()
        assert row.moved_rows == (update != 0).any(1).sum()
        assert row.moved_columns == (row.rank if row.method == "sbora-fa" else 128)
        assert row.moved_rows == (row.rank if row.method == "sbora-fb" else 128)
    seen = {outcome.claim.sentence: outcome for outcome in report.outcomes}
    for sentence in ("SBoRA-FA moves exactly r columns of a matrix", "SBoRA-FB moves exactly r rows of a matrix"):
        assert seen[sentence].verdict == "agrees"
    share = seen["SBoRA-FA leaves most weights as they were, 1 − r/in of them"]
    assert (share.verdict, share.statistic) == ("agrees", pytest.approx(1 - 3 / 128))
    assert seen["SBoRA-FA trains half as many parameters as LoRA of the same rank"].statistic == 0.5
    assert seen["SBoRA-FA takes less memory than LoRA"].verdict == "unclear"
    missing = seen["SBoRA-FA trains in less than half of DoRA's time"]
    assert (missing.verdict, missing.statistic) == ("unclear", None)
    assert "missing" in missing.note
    for words in ("SBoRA says", "figure2_region.png", "claims.md", "sbora-fb"):
        assert words in report.page()
    assert len(json.loads((out / "claims.json").read_text())) == len(report.outcomes)
    assert "| method" in (out / "results.md").read_text()

    forbidden()
    again = ("sbora", "-o", out, "--methods", "lora,sbora-fa,sbora-fb", "--rank", "2,4")
    assert call(small, *again, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["out"] for row in found["results"]] == [one.out for one in report.results]
    assert len(found["claims"]) == len(report.outcomes)
    assert call(small, *again) == 0
    assert "figure3_costs.png" in capsys.readouterr().out


def test_dual_lora_from_training_to_verdict_and_goes_on(small, tmp_path, capsys, forbidden):
    out = tmp_path / "out"
    first = reproduce_dual_lora(out, settings(small), rank=2, ratios=1, progress=False)
    assert [(one.method, one.rank) for one in first.results] == [("lora", 4), ("dora", 4), ("dual-lora", 2)]
    before = (out / "runs" / "ratio-2-2" / "dual-lora-r2-s0" / "result.json").stat().st_mtime_ns
    report = reproduce_dual_lora(out, settings(small), rank=2, ratios=3, progress=False)
    assert (out / "runs" / "ratio-2-2" / "dual-lora-r2-s0" / "result.json").stat().st_mtime_ns == before
    assert len({one.trainable for one in report.results if one.method != "dora"}) == 1
    runs = pd.read_csv(out / "runs.csv")
    dual = runs[runs["method"] == "dual-lora"]
    assert list(dual["rank"]) == first_ranks(2, 3)
    assert (dual["rank"] + dual["direction_rank"] == 4).all()
    ranks = pd.read_csv(out / "ranks.csv")
    assert set(ranks["group"]) == {"update", "magnitude", "direction"}
    assert set(ranks["run"]) == {"lora-r4-s0", "dual-lora-r2-s0"}
    for stem in ("figure2_sweep", "figure3_rank"):
        for suffix in FORMATS:
            assert (out / f"{stem}.{suffix}").stat().st_size > 5000
    page = report.page()
    for words in ("Dual LoRA says", "2 : 2", "figure2_sweep.png", "claims.md"):
        assert words in page
    seen = {outcome.claim.sentence: outcome.verdict for outcome in report.outcomes}
    assert seen["LoRA's update has no higher rank than its r"] == "agrees"
    assert seen["With r₁ + r₂ = 2r it trains as many parameters as LoRA of rank 2r"] == "agrees"

    forbidden()
    assert call(small, "dual-lora", "-o", out, "--rank", 2, "--ratios", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["out"] for row in found["results"]] == [one.out for one in report.results]


def test_errors_are_one_line_and_come_before_any_training(small, tmp_path, capsys, forbidden):
    forbidden()
    out = tmp_path / "out"
    assert "'lorax' is not one of" in error_of(capsys, call(small, "sbora", "-o", out, "--methods", "lora,lorax"), 2)
    assert "empty place" in error_of(capsys, call(small, "bora", "-o", out, "--methods", "lora,"), 2)
    assert "rank 4096" in error_of(capsys, call(small, "sbora", "-o", out, "--rank", 4096), 2)
    assert "ratios must be at least 1" in error_of(capsys, call(small, "dual-lora", "-o", out, "--ratios", 0), 2)
    assert "rank must be at least 1" in error_of(capsys, call(small, "dual-lora", "-o", out, "--rank", 0), 2)
    assert "rank 130" in error_of(capsys, call(small, "dual-lora", "-o", out, "--rank", 65), 2)
    assert not out.exists()
    (out / "runs").mkdir(parents=True)
    (out / "runs" / "notes.txt").write_text("mine")
    assert "notes.txt" in error_of(capsys, call(small, "sbora", "-o", out), 1)


def test_epochs_of_the_new_verbs_are_fewer(capsys):
    for verb, epochs in (("bora", 80), ("sbora", 40), ("dual-lora", 40)):
        assert main(["reproduce", verb, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())  # columns are as wide as the longest option
        assert f"--epochs INTEGER [default: {epochs}]" in shown


def test_bora_gives_options_and_rates_to_the_methods_that_have_them(small, tmp_path, monkeypatch):
    given = {}

    class Seen(Exception):  # noqa: N818 - ends the call once all runs are known
        pass

    def train(run, out, **_):
        given[run.method] = run
        if run.method == "galore":
            raise Seen
        return ColaResult(run.method, out.name, 1, 0.1, 0.0, 1, 0.0, 16, 1.0, 1.0, 1e-3, 1, 0)

    monkeypatch.setattr(bora, "train_cola", train)
    wanted = settings(small, options={"rank": 4, "alpha": 16.0})
    with pytest.raises(Seen):
        reproduce_bora(tmp_path, wanted, ["ft", "lora", "magnitude", "galore"], full_learning_rate=1e-5, progress=False)
    assert {name: run.learning_rate for name, run in given.items()} == {
        "ft": 1e-5,
        "lora": 1e-3,
        "magnitude": 1e-3,
        "galore": 1e-5,
    }
    assert given["ft"].options == given["magnitude"].options == {}
    assert given["lora"].options == {"rank": 4, "alpha": 16.0}
    galore = given["galore"].make_method()
    assert isinstance(galore, GaLore)
    assert galore.rank == 4


def test_other_settings_in_the_same_folder_are_refused(small, tmp_path, draw_png_alone):
    draw_png_alone()
    reproduce_sbora(tmp_path, settings(small), ["sbora-fa"], ranks=[2], progress=False)
    with pytest.raises(RecordError, match="another run"):
        reproduce_sbora(tmp_path, settings(small, epochs=2), ["sbora-fa"], ranks=[2], progress=False)


def test_first_ranks_have_the_middle_and_stay_inside():
    assert first_ranks(1, 5) == [1]
    assert first_ranks(8, 4) == [1, 6, 8, 10, 15]
    assert set(first_ranks(8, 5)) <= set(first_ranks(8, 15)) == set(range(1, 16))
    with pytest.raises(OptionError, match="ratios"):
        first_ranks(8, 0)

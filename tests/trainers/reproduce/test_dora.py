"""``reproduce dora`` from training to verdict, and ``reproduce all``, on a few examples."""

import json

import pandas as pd
import pytest
from transformers import Trainer

from deltaw.adapters import OptionError
from deltaw.analysis import Trajectory
from deltaw.analysis.claims import Claim, Outcome
from deltaw.cli import main
from deltaw.trainers.cola import ColaSettings
from deltaw.trainers.reproduce import FORMATS, Report, every, reproduce_all, reproduce_dora
from deltaw.trainers.vl import VLSettings

METHODS = ("lora", "dora", "dora-row")
SMALL = {"epochs": 1, "limit": 8, "dev_limit": 2, "batch_size": 8, "tasks": ("vqa", "nlvr"), "where": ("encoder",)}
CALL = ["--epochs", "1", "--limit", "8", "--dev-limit", "2", "--batch-size", "8"]
CALL += ["--tasks", "vqa,nlvr", "--where", "encoder"]


def settings(**options):
    return VLSettings(method="dora", **SMALL | options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("dora") / "out"
    return out, reproduce_dora(out, settings(), METHODS, rates={"lora": 1e-3}, progress=False)


def test_from_training_to_verdict(made):
    out, report = made
    assert [(result.method, result.learning_rate) for result in report.results] == [
        ("lora", 1e-3),
        ("dora", 3e-3),
        ("dora-row", 3e-3),
    ]
    drawn = ("figure2_query", "figure7_value", "figure3_query", "figure8_layers")
    for stem in (f"{figure}{end}" for figure in drawn for end in ("", "_rows")):
        for suffix in FORMATS:
            assert (out / f"{stem}.{suffix}").stat().st_size > 5000
    base = pd.read_csv(out / "changes_from_base.csv")
    expected = Trajectory.open(out / "runs" / "dora").changes("base")
    found = base[base["run"] == "dora"].reset_index(drop=True)
    pd.testing.assert_series_equal(found["delta_m"], expected["delta_m"], check_exact=False)
    seen = {outcome.claim.sentence: outcome for outcome in report.outcomes}
    assert seen["In LoRA's query matrices the columns' ΔM rises with ΔD"].statistic is not None
    assert seen["In DoRA (row)'s value matrices the rows' ΔM falls where ΔD rises"].statistic is not None
    assert seen["In Full FT's query matrices the columns' ΔM falls where ΔD rises"].note == "missing: a run of ft"
    assert seen["DoRA (column) has a higher VQA accuracy than LoRA"].statistic is not None
    assert "CIDEr" in seen["DoRA (column) has a higher mean of the four scores than LoRA"].note
    assert json.loads((out / "claims.json").read_text())[0]["paper"] == "DoRA"
    for words in ("DoRA says", "figure2_query.png", "claims.md", "nlvr", "dora-row"):
        assert words in report.page()


def test_it_is_not_trained_twice(made, capsys, monkeypatch, draw_png_alone):
    out, report = made

    def train(*_, **__):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(Trainer, "train", train)
    draw_png_alone()
    arguments = ["reproduce", "dora", "-o", str(out), "--methods", ",".join(METHODS), "--lr", "lora:1e-3", *CALL]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["out"] for row in found["results"]] == ["lora", "dora", "dora-row"]
    assert len(found["claims"]) == len(report.outcomes)


def test_mistakes_come_before_any_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: 1 / 0)
    with pytest.raises(OptionError, match="lorax"):
        reproduce_dora(tmp_path / "out", settings(), ["lorax"], progress=False)
    assert main(["reproduce", "dora", "-o", str(tmp_path / "out"), "--rank", "4096", *CALL]) == 2
    assert "4096" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def report_of(paper, folder):
    outcome = Outcome(Claim(paper, "Figure 1", f"{paper} is so"), "agrees", 0.5, 0.4, 0.6, "number > 0")
    return Report(paper, [], [outcome], [folder / "figure.png", folder / "figure.pdf"], [], "method  score")


def test_all_are_made_with_the_same_options_and_summed_up(tmp_path, monkeypatch):
    given = {}

    def stub(name, paper):
        def reproduce(out, wanted, *positional, **options):
            given[name] = (out, wanted, positional, options)
            return report_of(paper, out)

        monkeypatch.setattr(every, f"reproduce_{name}", reproduce)

    for name, paper in (("bora", "BoRA"), ("dora", "DoRA"), ("sbora", "SBoRA"), ("dual_lora", "Dual LoRA")):
        stub(name, paper)
    reports = reproduce_all(
        tmp_path, ColaSettings(method="bora", epochs=3), settings(), rank=4, seeds=[0, 1], progress=False
    )
    assert [report.paper for report in reports] == ["BoRA", "DoRA", "SBoRA", "Dual LoRA"]
    assert [found[0].name for found in given.values()] == ["bora", "dora", "sbora", "dual-lora"]
    assert all(found[3]["seeds"] == [0, 1] for found in given.values())
    assert given["bora"][1].options == {"rank": 4}
    assert given["sbora"][3]["ranks"] == (4, 8)
    assert given["dual_lora"][2] == (4,)
    assert given["bora"][1].epochs == 3
    assert given["sbora"][1].epochs == 40
    page = (tmp_path / "summary.md").read_text()
    for words in ("## Dual LoRA", "1 claim: 1 agree", "(sbora/figure.png)", "DoRA is so", "**agrees**"):
        assert words in page
    assert "figure.pdf" not in page


def test_what_is_done_is_summed_up_though_the_next_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(every, "reproduce_bora", lambda out, *_, **__: report_of("BoRA", out))

    def fail(*_, **__):
        raise OptionError("no")

    monkeypatch.setattr(every, "reproduce_dora", fail)
    with pytest.raises(OptionError):
        reproduce_all(tmp_path, ColaSettings(method="bora"), settings(), progress=False)
    assert "BoRA is so" in (tmp_path / "summary.md").read_text()


def test_the_command_of_all_four(tmp_path, capsys, monkeypatch):
    from deltaw.trainers import reproduce

    given = {}

    def all_of(out, cola, vl, **options):
        given.update(options, cola=cola, vl=vl)
        return [report_of("BoRA", out)]

    monkeypatch.setattr(reproduce, "reproduce_all", all_of)
    call = ["reproduce", "all", "-o", str(tmp_path), "--seed", "0,2", "--epochs", "5", "--rank", "4", "--alpha", "16"]
    assert main(call) == 0
    assert "BoRA: 1 claim: 1 agree" in capsys.readouterr().out
    assert (given["cola"].epochs, given["vl"].epochs, given["grid_epochs"]) == (5, 5, 5)
    assert given["vl"].options == {"rank": 4, "alpha": 16.0}
    assert given["cola"].options == {"alpha": 16.0}
    assert given["seeds"] == [0, 2]
    assert main([*call, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["BoRA"]

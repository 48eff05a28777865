"""``deltaw changes`` on what others saved: a pair of files, a run that needs its base."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters import LoRA, inject
from deltaw.analysis import Trajectory
from deltaw.cli import main
from deltaw.trainers import Recorder


def test_a_pair_of_files_and_of_folders(tmp_path, capsys):
    for name, value in (("before", 1.0), ("after", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"h.0.query.weight": torch.full((3, 4), value)}, tmp_path / name / "model.safetensors")
    for end in ("", "/model.safetensors"):
        paths = [f"{tmp_path}/{name}{end}" for name in ("before", "after")]
        assert main(["changes", *paths, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["axis"] for row in rows] == ["row", "column"]
        assert [row["delta_m"] for row in rows] == [2.0, 3**0.5]  # ‖(1, …)‖ of 4 and of 3 entries
        assert {row["step_to"] for row in rows} == {1}


def test_a_base_for_runs_that_do_not_hold_it(tmp_path, capsys):
    for step in (0, 1, 2):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        weight = torch.full((3, 4), 1.0 + step)
        save_file({"h.0.query.weight": weight}, tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors")
    call = ["changes", str(tmp_path / "run"), "--pairs", "base", "--json"]
    assert main(call) == 1
    assert "--base" in capsys.readouterr().err
    assert main([*call, "--base", str(tmp_path / "run" / "checkpoint-0")]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["delta_m"] for row in rows if row["axis"] == "row"] == [0.0, 2.0, 4.0]


def test_several_kinds_of_pairs_are_one_table(tmp_path, capsys):
    for step in (0, 1, 2):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        weight = torch.full((3, 4), 1.0 + step)
        save_file({"h.0.query.weight": weight}, tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors")
    base = str(tmp_path / "run" / "checkpoint-0")
    assert main(["changes", str(tmp_path / "run"), "--pairs", "consecutive,base", "--base", base, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = [(row["pairs"], row["delta_m"]) for row in rows if row["axis"] == "row"]
    assert found == [("consecutive", 2.0), ("consecutive", 2.0), ("base", 0.0), ("base", 2.0), ("base", 4.0)]


def test_a_run_being_recorded_is_measured_so_far_and_that_is_said_once(tmp_path, capsys):
    torch.manual_seed(0)
    model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRA(rank=2), targets=["0"])
    call = ["changes", str(tmp_path / "run"), "--json"]
    with Recorder(model, tmp_path / "run") as recorder:
        for step in (0, 3):
            recorder.step(step)
        assert main(call) == 0
        out, err = capsys.readouterr()
        assert {row["step_to"] for row in json.loads(out)} == {3}
        assert err.count("is still being recorded, or its recorder was killed; read up to step 3") == 1
    assert main(call) == 0
    assert "recorded" not in capsys.readouterr().err


VERBS = ("inspect", "inspect --quick", "changes", "rank", "geometry", "advise", "compare", "resize", "report", "plot")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_that_a_run_is_being_recorded(tmp_path, capsys, verb):
    torch.manual_seed(0)
    model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRA(rank=2), targets=["0"])
    run = str(tmp_path / "run")
    name, *options = verb.split()
    more = {
        "compare": [run],
        "resize": ["-o", str(tmp_path / "small"), "--rank", "1"],
        "report": ["-o", str(tmp_path / "report.html")],
        "plot": ["-o", str(tmp_path / "plot.png")],
    }.get(name, [])
    with Recorder(model, run) as recorder:
        for step in (0, 3):
            recorder.step(step)
            for trained in model.parameters():
                if trained.requires_grad:
                    torch.nn.init.normal_(trained)
        call = [name, *(["rank"] if name == "plot" else []), run, *more, *options]
        assert main(call) == 0
        said = "".join(capsys.readouterr())
        assert said.count("still being recorded, or its recorder was killed") == (2 if name == "compare" else 1)


def test_python_says_that_a_run_is_being_recorded(tmp_path, caplog):
    model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRA(rank=2), targets=["0"])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
        Trajectory.open(tmp_path / "run")
        assert "run: is still being recorded, or its recorder was killed; read up to step 0" in caplog.text
        caplog.clear()
        pickle.loads(pickle.dumps(Trajectory.open(tmp_path / "run")))
        assert caplog.text.count("recorded") == 1  # and not once more by each process
    caplog.clear()
    Trajectory.open(tmp_path / "run")
    assert not caplog.text

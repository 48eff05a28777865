"""Short answers in the terminal: what is shown of a long table, and that nothing is lost."""

import json
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.analysis import Trajectory
from deltaw.cli import Verbs, doctor, main
from deltaw.cli.summary import fitted
from deltaw.trainers import Recorder

LAYERS = 30


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    layers = [nn.ModuleDict({"query": nn.Linear(6, 5), "value": nn.Linear(6, 5)}) for _ in range(LAYERS)]
    model = inject(nn.ModuleDict({"layer": nn.ModuleList(layers)}), LoRA(rank=2), targets=["*"])
    with Recorder(model, tmp_path / "run") as recorder:
        for step in range(3):
            recorder.step(step)
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.01 * torch.randn_like(p) * p.requires_grad
    return str(tmp_path / "run")


def lines(capsys, *arguments):
    assert main([*map(str, arguments), "-q"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("verb", ["changes", "rank"])
def test_a_long_table_is_a_short_answer_and_the_file_has_all(verb, run, tmp_path, capsys):
    path = tmp_path / "all.csv"
    out = lines(capsys, verb, run, "-o", path)
    assert len(out) <= 40
    assert any("… and 20 more" in line for line in out)
    assert len(pd.read_csv(path)) == (LAYERS * 2 * 2 * 2 if verb == "changes" else LAYERS * 2)
    assert len(lines(capsys, verb, run, "--all")) > LAYERS * 2


def test_the_means_are_those_of_the_table(run, capsys):
    out = lines(capsys, "changes", run, "--pairs", "base", "--by", "kind")
    frame = Trajectory.open(run).changes("base")
    last = frame[(frame["step_to"] == 2) & (frame["axis"] == "row")].groupby("kind")["delta_m"].mean()
    shown = {line.split()[0]: line.split() for line in out if line.startswith(("query", "value"))}
    assert {kind: float(cells[2]) for kind, cells in shown.items()} == pytest.approx(dict(last), rel=5e-3)
    assert {cells[1] for cells in shown.values()} == {str(LAYERS)}
    earlier = lines(capsys, "changes", run, "--pairs", "base", "--by", "kind", "--step", 1)
    assert earlier != out
    assert "to step 1" in earlier[0]


def test_rows_are_sorted_and_counted_as_asked(run, capsys):
    out = lines(capsys, "changes", run, "--by", "layer", "--sort", "delta_d_row", "--top", 5)
    values = [float(line.split()[4]) for line in out if line.strip() and line.split()[0].isdigit()]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)
    for wrong in (["--by", "colour"], ["--last", "--step", "1"]):
        assert main(["changes", run, *wrong]) == 2
    assert main(["changes", run, "--sort", "colour"]) == 2
    assert main(["changes", run, "--step", "7"]) == 2
    assert "near it there are" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["changes", "rank", "compare"])
def test_columns_are_explained(verb, run, capsys):
    runs = [run, run] if verb == "compare" else [run]
    out = "\n".join(lines(capsys, verb, *runs, "--explain"))
    assert "Frobenius" in out if verb == "compare" else "mean over rows" in out or "singular values" in out


def test_a_table_fits_the_terminal():
    rows = [{"module": f"model.layers.{layer}.self_attn.q_proj", "text": "x" * 50, "rank": 8} for layer in range(3)]
    text = fitted(rows, width=70)
    assert max(map(len, text.splitlines())) <= 70
    assert "…1.self_attn.q_proj" in text


def test_a_name_that_is_escaped_is_shortened_as_it_is_shown():
    """It is longer so, and was shortened for ever."""
    rows = [{"kind": "\x1b" * 20, "delta": 0.5}, {"kind": None, "delta": 1.0}]
    text = fitted(rows, width=40)
    assert text.replace("\n", "").isprintable()
    assert max(map(len, text.splitlines())) <= 40


def test_claims_that_cannot_be_checked_are_counted_and_not_printed(run, capsys):
    out = lines(capsys, "claims", run)
    assert "claims:" in out[0]
    assert "--all says which" in out[-1]
    assert len(out) < len(lines(capsys, "claims", run, "--all"))


def test_doctor_says_what_is_here_and_what_is_missing(monkeypatch, capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["libraries"]["torch"] == torch.__version__
    assert {"what": "train cola, reproduce", "state": "ready"} in found["verbs"]
    monkeypatch.setattr(
        "deltaw.cli.doctor.requires", lambda _: ['nowhere>=1; extra == "train"', 'torch>=99; extra == "vl"']
    )
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "pip install 'deltaw[train]': lacks nowhere" in out
    assert "lacks torch >=99 (here" in out


def test_doctor_follows_the_extras_that_an_extra_names(monkeypatch):
    """An environment with all of vl but what train brings was called ready for `train vl`."""
    monkeypatch.setattr(
        "deltaw.cli.doctor.requires",
        lambda _: ['deltaw[train]; extra == "vl"', 'nowhere>=1; extra == "train"', 'torch>=1; extra == "vl"'],
    )
    states = {verb["what"]: verb["state"] for verb in doctor.examined()["verbs"]}
    assert states["train vl, reproduce dora|all"] == "pip install 'deltaw[vl]': lacks nowhere"


def test_doctor_tells_a_library_that_cannot_be_loaded(monkeypatch, capsys):
    """It ended in a traceback, where it is asked what is wrong."""
    monkeypatch.setitem(sys.modules, "deltaw.adapters.compiled.loops", None)
    assert main(["doctor"]) == 1
    assert "numba" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("broken"))


def test_doctor_names_what_s3_needs_and_every_verb(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "s3fs" else real(name))
    states = {verb["what"]: verb["state"] for verb in doctor.examined()["verbs"]}
    assert states["runs at s3://"] == "pip install s3fs: lacks s3fs"
    said = " ".join(states)
    assert not [verb for verb in Verbs.names if verb not in said and verb != "doctor"]


def test_layers_stand_in_their_order_whatever_the_files(tmp_path, capsys):
    tensors = {
        f"base_model.model.layers.{layer}.query.lora_{part}.weight": torch.ones(shape)
        for layer in range(12)
        for part, shape in (("A", (2, 1024)), ("B", (1024, 2)))
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    out = lines(capsys, "rank", tmp_path, "--by", "layer")
    rows = [line.split() for line in out if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == [str(layer) for layer in range(12)]
    assert {row[3] for row in rows} == {"1024"}  # no rounding to 1.02e+03
    out = "\n".join(lines(capsys, "compare", tmp_path, tmp_path))
    assert "nan" not in out

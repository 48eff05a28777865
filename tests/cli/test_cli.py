"""The command line: each verb, its JSON, and one clear line for every mistake."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltaw.adapters import METHODS, create, inject
from deltaw.analysis import Trajectory
from deltaw.analysis.records.run_folder.format import INDEX, MANIFEST, checkpoint_path, digest
from deltaw.cli import main
from deltaw.trainers import Recorder
from deltaw.trainers.cola.data import BUILTIN

MODEL = str(BUILTIN / "model")


def record(folder, method, size=8):
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"query": nn.Linear(size, size)}) for _ in range(2)])})
    inject(model, create(method, **({} if method == "ft" else {"rank": 2})), targets=["*.query"])
    with Recorder(model, folder) as recorder:
        for step in range(4):
            recorder.step(step, loss=1.0)
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad:
                        p += 0.01 * torch.randn_like(p)
    return folder


@pytest.fixture
def runs(tmp_path):
    return [str(record(tmp_path / method, method)) for method in ("lora", "dora", "bora", "dual-lora")]


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def failed(capsys, code, *arguments):
    """The one line on stderr of a call that fails with this exit code."""
    got, _, err = call(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("deltaw:")]
    assert got == code, err
    assert len(lines) == 1
    assert lines == err.splitlines()[-1:]
    return lines[0]


def test_inspect(runs, capsys):
    code, out, _ = call(capsys, "inspect", runs[0], "--verify")
    assert code == 0
    assert "lora" in out
    assert "checksums of 5 files" in out
    code, out, _ = call(capsys, "inspect", runs[2], "--json")
    found = json.loads(out)
    assert found["method"] == "bora"
    assert found["steps"] == [0, 1, 2, 3]
    assert found["modules"][0]["kind"] == "query"


def test_changes(runs, capsys, tmp_path):
    code, out, _ = call(capsys, "changes", *runs, "--pairs", "base", "--json")
    rows = json.loads(out)
    frame = pd.concat([Trajectory.open(run).changes("base") for run in runs], ignore_index=True)
    assert code == 0
    np.testing.assert_array_equal([row["delta_d"] for row in rows], frame.delta_d)
    assert {row["step_from"] for row in rows} == {None}
    for suffix, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet), ("json", pd.read_json)):
        path = tmp_path / f"table.{suffix}"
        assert call(capsys, "changes", *runs, "-o", path)[0] == 0
        consecutive = pd.concat([Trajectory.open(run).changes() for run in runs], ignore_index=True)
        np.testing.assert_allclose(read(path).delta_m, consecutive.delta_m, rtol=1e-9)
    assert "table.xlsx" in failed(capsys, 2, "changes", runs[0], "-o", tmp_path / "table.xlsx")
    code, out, _ = call(capsys, "changes", runs[0], "--correlation", "--json")
    assert {"pearson", "spearman", "slope", "n"} <= set(json.loads(out)[0])


def test_rank(runs, capsys, tmp_path):
    code, out, _ = call(capsys, "rank", *runs, "--json", "-o", tmp_path / "ranks.csv")
    rows = json.loads(out)
    assert code == 0
    assert {row["rank"] for row in rows if row["method"] == "lora"} == {2}
    assert {row["group"] for row in rows if row["method"] == "dual-lora"} == {"update", "magnitude", "direction"}
    assert len(pd.read_csv(tmp_path / "ranks.csv")) == len(rows) == 3 * 2 + 3 * 2
    code, out, _ = call(capsys, "rank", runs[0], "--approximate", 0.01, "--all")
    assert (code, out.splitlines()[0].split()[-1]) == (0, "error")
    assert "approximate is 2.0" in failed(capsys, 2, "rank", runs[0], "--approximate", 2)
    code, out, _ = call(capsys, "rank", runs[0], "--step", 1, "--step", 3)
    assert code == 0
    assert "effective_rank" in out


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("figure", ["symmetry", "updates", "rank"])
def test_plot(figure, suffix, runs, capsys, tmp_path):
    path = tmp_path / f"{figure}.{suffix}"
    assert call(capsys, "plot", figure, *runs, "-o", path)[0] == 0
    assert path.stat().st_size > 5000
    other = ["--scale", "linear"] if figure == "rank" else ["--scale", "log", "--share", "none"]
    assert call(capsys, "plot", figure, *runs, "-o", tmp_path / f"b.{suffix}", *other)[0] == 0
    assert (tmp_path / f"b.{suffix}").read_bytes() != path.read_bytes()


def test_plot_mistakes(runs, capsys, tmp_path):
    assert "query" in failed(capsys, 2, "plot", "symmetry", runs[0], "-o", tmp_path / "a.png", "--kind", "gate")
    assert ".bmp" in failed(capsys, 2, "plot", "symmetry", runs[0], "-o", tmp_path / "a.bmp")
    assert "--share" in failed(capsys, 2, "plot", "rank", runs[0], "-o", tmp_path / "a.png", "--share", "none")
    assert "symmetry" in failed(capsys, 2, "plot", "pie", runs[0], "-o", tmp_path / "a.png")
    assert not list(tmp_path.glob("a.*"))


def test_params(capsys):
    code, out, _ = call(capsys, "params", "--model", MODEL, "--rank", 4, "--json")
    rows = {row["method"]: row for row in json.loads(out)}
    assert code == 0
    assert set(rows) == set(METHODS)
    d, n = 128, rows["lora"]["modules"]
    assert rows["lora"]["trainable"] == n * 4 * 2 * d
    assert rows["bora"]["trainable"] == n * (4 * 2 * d + 2 * d)
    assert rows["sbora-fa"]["trainable"] == n * 4 * d
    assert rows["ft"]["share"] == 1
    assert "qery" in failed(capsys, 2, "params", "--model", MODEL, "--targets", "*qery")
    assert "rank" in failed(capsys, 2, "params", "--model", MODEL, "--rank", 0)
    assert "nowhere" in failed(capsys, 1, "params", "--model", "./nowhere")


def test_train_and_its_mistakes(small, capsys, tmp_path):
    common = ["--model", MODEL, "--data", small, "--epochs", 1, "--batch-size", 16, "--record-every", 1]
    out = tmp_path / "run"
    code, text, _ = call(capsys, "train", "cola", "--method", "bora", "--out", out, *common)
    assert code == 0
    assert "best MCC" in text
    code, text, _ = call(capsys, "train", "cola", "--method", "bora", "--out", out, *common, "--json")
    assert json.loads(text)["method"] == "bora"
    assert "another run" in failed(capsys, 1, "train", "cola", "--method", "lora", "--out", out, *common)

    new = ["--out", tmp_path / "new", *common]
    for rank in (0, -3, 4096):
        assert "rank" in failed(capsys, 2, "train", "cola", "--method", "lora", "--rank", rank, *new)
    dora = ["train", "cola", "--method", "dora"]
    assert "NAME=VALUE" in failed(capsys, 2, *dora, "--option", "axis", *new)
    assert "diagonal" in failed(capsys, 2, *dora, "--option", "axis=diagonal", *new)
    assert "width" in failed(capsys, 2, *dora, "--option", "width=3", *new)
    assert "*.quary" in failed(capsys, 2, "train", "cola", "--method", "lora", "--targets", "*.quary", *new)
    assert "lorax" in failed(capsys, 2, "train", "cola", "--method", "lorax", *new)
    (tmp_path / "weightless").mkdir()
    (tmp_path / "weightless" / "config.json").write_text((BUILTIN / "model" / "config.json").read_text())
    line = failed(capsys, 1, "train", "cola", "--method", "lora", *new, "--model", tmp_path / "weightless")
    assert "weightless" in line
    for text, words in [("", "empty"), ("a\tb\n", "columns"), ("a\t7\t\tSentence.\n", "label '7'")]:
        (small / "train.tsv").write_text(text)
        assert words in failed(capsys, 1, "train", "cola", "--method", "lora", *new)
    assert not (tmp_path / "new").exists()


def rewrite(run, step, tensors):
    """Put other tensors into a checkpoint, as a stranger's tool might, with a right checksum."""
    path = checkpoint_path(run, step)
    save_file(tensors, str(path))
    lines = [json.loads(line) for line in (run / INDEX).read_text().splitlines()]
    for line in lines:
        if line["step"] == step:
            line |= {"bytes": path.stat().st_size, "sha256": digest(path)}
    (run / INDEX).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_bad_runs_end_in_one_line(tmp_path, capsys):
    run = record(tmp_path / "run", "ft")
    assert "no such folder" in failed(capsys, 1, "inspect", tmp_path / "nowhere")
    assert "not a recorded run" in failed(capsys, 1, "changes", tmp_path)

    tensors = load_file(checkpoint_path(run, 2))
    name = next(iter(tensors))
    rewrite(run, 2, tensors | {name: torch.full_like(tensors[name], torch.nan)})
    line = failed(capsys, 1, "changes", run)
    assert "layer.0.query" in line
    assert "step 2" in line
    rewrite(run, 2, tensors | {name: tensors[name][:3].clone()})
    assert "(3, 8)" in failed(capsys, 1, "changes", run)

    rewrite(run, 2, tensors)  # else opening says that the header is another
    path = checkpoint_path(run, 2)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "checksum" in failed(capsys, 1, "inspect", run, "--verify")
    path.write_bytes(data[:-10])
    assert "truncated" in failed(capsys, 1, "inspect", run)
    raw = json.loads((run / MANIFEST).read_text())
    (run / MANIFEST).write_text(json.dumps(raw | {"version": 99}))
    assert "version 99" in failed(capsys, 1, "inspect", run)


def test_wrong_calls(capsys):
    assert "No such command" in failed(capsys, 2, "frobnicate")
    assert "Missing" in failed(capsys, 2, "changes")
    assert "--pears" in failed(capsys, 2, "changes", "x", "--pears", "y")


def test_every_verb_helps_with_an_example(capsys):
    from deltaw.cli import Verbs

    for verb in Verbs.names:
        code, out, _ = call(capsys, verb, "--help")
        assert code == 0
        if verb not in ("train", "reproduce"):
            assert "Example:" in out
            assert f"deltaw {verb}" in out
    for verb in (("train", "cola"), ("reproduce", "bora")):
        assert "Example:" in call(capsys, *verb, "--help")[1]


def test_it_is_a_program():
    done = subprocess.run([sys.executable, "-m", "deltaw.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("deltaw 0.")
    done = subprocess.run(
        [sys.executable, "-m", "deltaw.cli", "inspect", "/no/where"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("deltaw: /no/where")


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="no such folder"):
        main(["--debug", "inspect", "/no/where"])

"""``deltaw train vl``: one run, a grid, its JSON, and one clear line for every mistake."""

import json

import torch
from safetensors.torch import save_file

from deltaw.analysis import Trajectory
from deltaw.cli import main
from deltaw.cli.vl_options import BLOCKS, KINDS, TASKS
from deltaw.trainers.vl import examples, settings

SMALL = ["--epochs", 1, "--batch-size", 12, "--answer-length", 6]


def call(capsys, scenes, *more):
    code = main([str(argument) for argument in ("train", "vl", "--data", scenes, *SMALL, *more)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_the_options_know_what_the_library_knows():
    assert (TASKS, BLOCKS, KINDS) == (examples.TASKS, settings.BLOCKS, settings.KINDS)


def test_one_run(scenes, capsys, tmp_path):
    save_file(
        {f"{part}-{n}.png": torch.ones(3, 5) for part in ("train", "dev") for n in range(12)},
        tmp_path / "f.safetensors",
    )
    given = ["--method", "dora", "--where", "decoder,cross", "--kinds", "query", "--kinds", "key", "--checkpoints", 2]
    given += ["--limit", 4, "--vision", tmp_path / "f.safetensors", "--lr", "1e-3", "--rank", 2, "-o", tmp_path / "run"]
    code, out, _ = call(capsys, scenes, *given)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[3:8]] == [*TASKS, "average"]
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 2, 4]
    assert set(run.spectra([4]).kind) == {"query", "key"}
    assert not any(".encoder.layers." in name for name in run.modules)
    code, out, _ = call(capsys, scenes, *given, "--json")
    found = json.loads(out)
    assert (found["method"], found["rank"], found["n_dev"]["vqa"], found["learning_rate"]) == ("dora", 2, 1, 1e-3)
    code, _, err = call(capsys, scenes, *given, "--seed", 1)
    assert code == 1
    assert "holds another run (seed is 0, not 1)" in err


def test_a_grid(scenes, capsys, tmp_path):
    given = ["--method", "ft,lora", "--rank", "2", "--seed", "0,1", "--tasks", "vqa,nlvr", "-o", tmp_path / "grid"]
    given += ["--lr", "2e-3", "--lr", "ft:5e-4"]
    code, out, _ = call(capsys, scenes, *given)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["ft", "lora", "prior"]
    code, out, _ = call(capsys, scenes, *given, "--json")
    found = json.loads(out)
    assert [result["learning_rate"] for result in found["results"]] == [5e-4, 5e-4, 2e-3, 2e-3]
    assert [(row["method"], row["seeds"], row["rank"]) for row in found["table"]] == [
        ("ft", 2, None),
        ("lora", 2, 2),
        ("prior", None, None),
    ]


def test_mistakes_are_one_line(scenes, capsys, tmp_path):
    out = tmp_path / "new"
    lora = ["--method", "lora", "-o", out]
    for words, code, wrong in [
        ("'head' is not one of", 2, [*lora, "--where", "encoder,head"]),
        ("'qkv' is not one of", 2, [*lora, "--kinds", "qkv"]),
        ("'snli' is not one of", 2, [*lora, "--tasks", "snli"]),
        ("'x' is not a valid float", 2, [*lora, "--lr", "lora:x"]),
        ("a learning rate for 'dora', which is not among the methods lora", 2, [*lora, "--lr", "dora:1e-3"]),
        ("no method 'dorx'", 2, [*lora, "--lr", "dorx:1e-3"]),
        ("learning_rate must be above 0", 2, [*lora, "--lr", "lora:-1"]),
        ("checkpoints must be at least 1", 2, [*lora, "--checkpoints", 0]),
        ("nowhere", 1, [*lora, "--data", tmp_path / "nowhere"]),
        ("nowhere", 1, [*lora, "--vision", tmp_path / "nowhere.h5"]),
        ("no BART can be loaded", 1, [*lora, "--model", tmp_path]),
        ("by --rank and by --option", 2, [*lora, "--rank", 2, "--option", "rank=4"]),
    ]:
        got, _, err = call(capsys, scenes, *wrong)
        lines = [line for line in err.splitlines() if line.startswith("deltaw:")]
        assert got == code, (words, err)
        assert len(lines) == 1
        assert words in lines[0]
    assert not out.exists()

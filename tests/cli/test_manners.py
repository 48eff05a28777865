"""How the command line behaves: bare groups, suggestions, volume, checks before work, true advice, safe names."""

import csv
import errno
import json
import logging
import os
import subprocess
import sys
import warnings

import click
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.adapters.errors import WriteError
from deltaw.analysis.records.storage.atomic import disk_errors
from deltaw.cli import app, main, output
from deltaw.cli.commands import OneOf, did_you_mean
from deltaw.trainers import Recorder

EVIL = "h.0.\x1b]0;PWNED\x07\x1b[2J\x1b[31mx\x1b[0m"
NAMES = (EVIL, "=cmd|'/c calc'!A1", "@SUM(1)", "a\nb|c", "\u202egnp.exe")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manners") / "run"
    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(8, 8)}), LoRA(rank=2), targets=["*"])
    with Recorder(model, folder) as recorder:
        for step in range(2):
            recorder.step(step)
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.1 * p.requires_grad
    return folder


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("group", [[], ["plot"], ["train"], ["reproduce"]])
@pytest.mark.parametrize("volume", [[], ["--quiet"]])
def test_a_group_alone_prints_its_help(group, volume, capsys):
    code, out, err = call(capsys, *group, *volume)
    assert (code, err) == (0, "")
    assert out == call(capsys, *group, "--help")[1]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["chnages"], "'changes'"),
        (["INSPECT", "run"], "'inspect'"),
        (["plot", "simmetry"], "'symmetry'"),
        (["plot", "singular"], "'singular-values'"),
        (["train", "colla"], "'cola'"),
        (["reproduce", "duallora"], "'dual-lora'"),
        (["params", "--model", "x", "--method", "dorra"], "'dora'"),
        (["params", "--model", "x", "--method", "lora,BORA"], "'bora'"),
        (["reproduce", "bora", "-o", "x", "--methods", "dorarow"], "'dora-row'"),
        (["claims", "run", "--paper", "dual"], "'dual-lora'"),
        (["changes", "run", "--pairs", "bases"], "'base'"),
        (["train", "vl", "--method", "ft", "-o", "x", "--kinds", "querry"], "'query'"),
        (["changes", "run", "--pears", "base"], "'--pairs'"),
        (["plot", "cloud", "run", "-o", "a.png", "--axes", "row"], "'--axis'"),
    ],
)
def test_did_you_mean(words, meant, capsys):
    code, _, err = call(capsys, *words)
    assert code == 2
    assert "id you mean" in err
    assert meant in err.partition("id you mean")[2]


def test_a_suggestion_is_no_guess():
    assert did_you_mean("frobnicate", ["train", "inspect"]) == "is not one of train, inspect"
    with pytest.raises(click.BadParameter, match="is not one of lora"):
        OneOf(["lora"]).convert("", None, None)


def test_all_ways_to_call_it_are_one_command(capsys):
    wanted = call(capsys, "--help")[1]
    for module in ("deltaw", "deltaw.cli"):
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == wanted.split()


def speaking(monkeypatch):
    """A library that says something at every level, instead of ``table``."""

    def table(*args, progress=False, **given):
        logging.getLogger("deltaw.somewhere").info("opened \x1b[2J")
        logging.getLogger("deltaw.somewhere").warning("watch out")
        warnings.warn("mind the gap\nand this", stacklevel=2)
        print("progress" if progress else "no progress", file=sys.stderr)
        return pd.DataFrame({"delta_m": [1.0]})

    monkeypatch.setattr("deltaw.analysis.runs.table", table)


SAID = ["opened", "watch out", "mind the gap"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("flags", "said", "told"),
    [
        ([], ["watch out", "mind the gap"], True),
        (["--quiet"], [], False),
        (["-q"], [], False),
        (["--verbose"], SAID, True),
        (["-v"], SAID, True),
    ],
)
@pytest.mark.parametrize("where", ["before", "after"])
def test_quiet_and_verbose(flags, said, told, where, run, capsys, tmp_path, monkeypatch):
    speaking(monkeypatch)
    words = ["changes", run, "--all", "-o", tmp_path / "a.csv"]
    code, out, err = call(capsys, *([*flags, *words] if where == "before" else [*words, *flags]))
    assert code == 0
    assert "delta_m" in out
    assert ("written to" in out) == ("-q" not in flags and "--quiet" not in flags)
    assert [text for text in SAID if text in err] == said
    assert "\x1b" not in err
    rest = [line for line in err.splitlines() if not any(text in line for text in SAID)]
    assert [line for line in rest if "written" not in line] == ["progress" if told else "no progress"]
    assert logging.getLogger("deltaw").handlers == []


def test_quiet_hides_the_progress_of_a_figure(run, capsys, tmp_path):
    words = ["plot", "symmetry", run, "-o", tmp_path / "a.png"]
    assert call(capsys, *words, "--quiet") == (0, "", "")
    assert "changes of" in call(capsys, *words)[2]


def test_quiet_still_prints_errors(capsys):
    code, out, err = call(capsys, "--quiet", "inspect", "/no/where")
    assert (code, out) == (1, "")
    assert err.startswith("deltaw: /no/where")


@pytest.mark.parametrize("words", [["changes"], ["rank"], ["plot", "symmetry"]])
def test_a_missing_folder_is_made(words, run, capsys, tmp_path):
    path = tmp_path / "new" / "folder" / ("a.png" if words[0] == "plot" else "a.csv")
    assert call(capsys, *words, run, "-o", path)[0] == 0
    assert path.stat().st_size > 0


def never(monkeypatch):
    def opened(*args, **given):
        raise AssertionError("something was opened before the paths were checked")

    monkeypatch.setattr("deltaw.analysis.runs.open_runs", opened)
    monkeypatch.setattr("deltaw.analysis.trajectory.Trajectory.open", opened)


@pytest.mark.parametrize("words", [["changes"], ["rank"], ["plot", "cloud"], ["claims"]])
def test_paths_are_checked_before_anything_is_opened(words, run, capsys, tmp_path, monkeypatch):
    never(monkeypatch)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.png").mkdir()
    name = {"plot": "a.png", "claims": "claims"}.get(words[0], "a.csv")
    code, _, err = call(capsys, *words, run, "-o", tmp_path / "file" / name)
    assert code == 1
    assert "is a file" in err
    if words[0] != "claims":
        for wrong in ("folder.csv" if words[0] != "plot" else "folder.png", "a.doc", "a"):
            code, _, err = call(capsys, *words, run, "-o", tmp_path / wrong)
            assert code == 2
            assert wrong in err
    monkeypatch.setattr(os, "access", lambda *given: False)
    code, _, err = call(capsys, *words, run, "-o", tmp_path / "new" / name)
    assert code == 1
    assert "may not write" in err
    assert not (tmp_path / "new").exists()


def test_libraries_are_looked_for_before_anything_is_opened(run, capsys, tmp_path, monkeypatch):
    never(monkeypatch)
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    code, _, err = call(capsys, "changes", run, "-o", tmp_path / "a.parquet")
    assert code == 2
    assert "pip install pyarrow" in err
    for words in (["train", "cola", "--method", "lora"], ["train", "vl", "--method", "lora"], ["reproduce", "all"]):
        code, _, err = call(capsys, *words, "-o", tmp_path / "run")
        assert code == 1
        assert "pip install 'deltaw[" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (None, "nothing was kept yet, and the same command begins again"),
        ("run/manifest.json", "nothing was kept yet, and the same command begins again"),
        ("run/training/checkpoint-20/trainer_state.json", "the same command goes on where it stopped"),
        ("run/bora/result.json", "the same command goes on where it stopped"),
    ],
)
def test_ctrl_c_promises_what_is_so(kept, said, capsys, tmp_path, monkeypatch):
    if kept:
        (tmp_path / kept).parent.mkdir(parents=True)
        (tmp_path / kept).write_text("{}")

    def interrupted(*args, **given):
        raise KeyboardInterrupt

    monkeypatch.setattr("deltaw.trainers.cola.train_cola", interrupted)
    code, _, err = call(capsys, "train", "cola", "--method", "lora", "-o", tmp_path / "run")
    assert code == 130
    assert err.splitlines()[-1] == f"deltaw: interrupted; {said}"


def test_ctrl_c_elsewhere_promises_nothing(run, capsys, monkeypatch):
    def interrupted(*args, **given):
        raise KeyboardInterrupt

    monkeypatch.setattr("deltaw.analysis.runs.table", interrupted)
    code, _, err = call(capsys, "changes", run)
    assert code == 130
    assert err.splitlines()[-1] == "deltaw: interrupted"


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (type("SafetensorError", (Exception,), {})("I/O error: No space left on device (os error 28)"), True),
        (type("SafetensorError", (Exception,), {})("I/O error: Permission denied (os error 13)"), False),
    ],
)
def test_space_is_asked_for_where_it_is_missing(error, full, tmp_path):
    with pytest.raises(WriteError) as caught, disk_errors(tmp_path / "a"):
        raise error
    assert ("space" in str(caught.value).partition("is safe")[2]) == full


def hostile(folder, fill):
    folder.mkdir()
    save_file({f"{name}.weight": fill(2, 2) for name in NAMES}, str(folder / "model.safetensors"))
    return folder


def test_names_from_files_reach_no_terminal_and_no_cell_raw(capsys, tmp_path):
    torch.manual_seed(0)
    first, second = (hostile(tmp_path / name, torch.randn) for name in ("first", "second"))
    path = tmp_path / "a.csv"
    for rows in ([], ["--all"]):  # a summary, and each matrix
        code, out, err = call(capsys, "changes", first, second, *rows, "-o", path, "--quiet")
        assert code == 0
        for text in (out, err, path.read_text()):
            assert not any((ord(c) < 32 and c != "\n") or c in "\x7f\u202e" for c in text)
    assert "h.0.\\x1b]0;PWNED\\x07" in out
    assert "a\\nb|c" in out
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["module"][0] for row in rows} == {"h", "'", "a", "\\"}
    assert {"'=cmd|'/c calc'!A1", "'@SUM(1)"} < {row["module"] for row in rows}
    assert np.isfinite([float(row["delta_m"]) for row in rows]).all()

    code, out, err = call(capsys, "inspect", first)
    assert "\x1b" not in out + err
    code, out, _ = call(capsys, "changes", first, second, "--json")
    assert {row["module"] for row in json.loads(out)} == set(NAMES)


def test_an_error_shows_names_safely(capsys, tmp_path):
    folder = tmp_path / "r\x1b]0;PWNED\x07"
    folder.mkdir()
    code, _, err = call(capsys, "inspect", folder)
    assert code == 1
    assert "\x1b" not in err
    assert "\\x1b]0;PWNED" in err
    code, _, err = call(capsys, "\x1b[2J")
    assert code == 2
    assert "\x1b" not in err


def test_every_command_has_both_volumes():
    context = click.Context(app)
    for name in ("changes", "plot"):
        options = {flag for p in app.get_command(context, name).params for flag in p.opts}
        assert {"-q", "--quiet", "-v", "--verbose"} <= options


def commands(group, words=()):
    """Every command below a group, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


def test_every_help_has_an_example_and_no_sentence_is_cut(capsys):
    for words, _ in commands(app):
        out = call(capsys, *words, "--help")[1]
        assert "Example:\n" in out, words
        assert not [line for line in out.splitlines() if line.endswith("...") and "Usage" not in line], words

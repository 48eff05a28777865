"""What the command line imports: help, completion and every wrong call answer without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from deltaw.cli import Verbs, app, main
from deltaw.cli.commands import Group

HEAVY = ("torch", "pandas", "matplotlib", "numba", "transformers", "scipy", "seaborn")

# Calls the command line once for each list of words, in one process, and prints which of them has loaded what.
PROGRAM = """
import contextlib, io, json, sys
from deltaw.cli import main
found = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    found.append([words, code, heavy, out.getvalue(), err.getvalue()])
    if heavy:
        break
print(json.dumps(found))
"""


def commands(command=app, words=()):
    """Every command as the words that call it, groups before what is in them."""
    yield list(words), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), [*words, name])


EVERY = [words for words, _ in commands()]
GROUPS = [words for words, command in commands() if isinstance(command, Group)]


def called(calls, tmp_path):
    """(words, exit code, heavy modules, stdout, stderr) of each call, all in one fresh process."""
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(calls), json.dumps(HEAVY)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(done.stdout)
    for words, _, heavy, _, _ in found:
        assert not heavy, f"deltaw {' '.join(words)} has imported {heavy}"
    assert len(found) == len(calls)
    return found


def test_every_help_answers_without_torch(tmp_path):
    assert len(EVERY) > 30
    calls = [["--version"], *([*words, "--help"] for words in EVERY), *GROUPS]
    for words, code, _, out, err in called(calls, tmp_path):
        assert code == 0, words
        assert err == "", words
        assert out.startswith(("deltaw 0", f"Usage: deltaw {' '.join(w for w in words if w != '--help')}".strip())), (
            words
        )


def test_every_wrong_call_answers_without_torch(tmp_path):
    alone = [words for words in EVERY if words not in GROUPS]
    wrong = [[*words, "nonsense"] for words in GROUPS]
    wrong += [[*words, "--nonsense"] for words in EVERY]
    wrong += [
        words for words in alone if words not in (["inspect"], ["doctor"], ["packs"])
    ]  # without an argument that must be there
    wrong += [
        ["changes", "run", "-o", "table.xlsx"],
        ["changes", "run", "--pairs", "neighbours"],
        ["rank", "run", "-o", "table"],
        ["claims", "run", "--paper", "lora"],
        ["plot", "symmetry", "run", "-o", "figure.bmp"],
        ["plot", "animation", "run", "-o", "movie.png"],
        ["plot", "symmetry", "run", "-o", "a.png", "--share", "some"],
        ["params", "--model", "roberta-base", "--method", "lora,dorra"],
        ["params", "--model", "roberta-base", "--option", "axis"],
        ["train", "cola", "--method", "dorra", "-o", "run"],
        ["train", "cola", "--method", "dora", "-o", "run", "--option", "axis"],
        ["train", "cola", "--method", "dora", "-o", "run", "--lr", "dorra:1"],
        ["train", "vl", "--method", "dora", "-o", "run", "--tasks", "vqa,vqb"],
        ["reproduce", "bora", "--methods", "dorra", "-o", "demo"],
        ["changes", "run", "--quiet", "--verbose"],
    ]
    for words, code, _, out, err in called(wrong, tmp_path):
        assert code == 2, (words, err)
        assert out == ""
        assert err.startswith("deltaw: "), (words, err)
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("deltaw in", {"inspect"}),
        ("deltaw plot sy", {"symmetry"}),
        ("deltaw train cola --method lora,do", {"lora,dora", "lora,dora-row"}),
        ("deltaw params --method oa", {"oa"}),
        ("deltaw changes --pairs ", {"consecutive", "initial", "base"}),
        ("deltaw claims --paper d", {"dora", "dual-lora"}),
        ("deltaw reproduce d", {"dora", "dual-lora"}),
        ("deltaw changes --qu", {"--quiet"}),
    ],
)
def test_completion(typed, offered, monkeypatch, capsys):
    """In this process; the next test looks at what completion imports."""
    monkeypatch.setenv("_DELTAW_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert {line.partition(",")[2] for line in capsys.readouterr().out.splitlines()} == offered


def test_completion_answers_without_torch():
    program = (
        "import sys\nfrom deltaw.cli import main\ntry:\n    main([])\nexcept SystemExit:\n"
        f"    print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    words = {"_DELTAW_COMPLETE": "bash_complete", "COMP_WORDS": "deltaw plot cloud --ax", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ | words
    )
    assert done.stdout.splitlines() == ["plain,--axis", "LOADED []"]


def test_the_list_of_verbs_says_what_each_verbs_help_says():
    for name, about in Verbs.about.items():
        command = app.get_command(click.Context(app), name)
        said = " ".join((command.help or "").split())
        assert said.startswith(about.removesuffix(".")), name
        assert len(about) < 90


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_page_shows_how_a_shell_completes(shell, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f"_DELTAW_COMPLETE={shell}_source deltaw" in page
    monkeypatch.setenv("_DELTAW_COMPLETE", f"{shell}_source")
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 0
    assert f"_DELTAW_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_inspect_needs_no_pandas_and_quick_no_torch(tmp_path):
    make = (
        "from torch import nn\nfrom deltaw.adapters import LoRA, inject\nfrom deltaw.trainers import Recorder\n"
        "model = inject(nn.ModuleDict({'query': nn.Linear(6, 6)}), LoRA(rank=2), targets=['query'])\n"
        "with Recorder(model, 'run') as recorder:\n    recorder.step(0)\n"
    )
    subprocess.run([sys.executable, "-c", make], check=True, cwd=tmp_path)
    calls = [["inspect", "run", "--quick"], ["inspect", "run", "--quick", "--json"]]
    assert [code for _, code, _, _, _ in called(calls, tmp_path)] == [0, 0]
    program = "import sys\nfrom deltaw.cli import main\nmain(['inspect', 'run', '-q'])\nprint('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert "torch" in loaded
    assert not loaded & {"pandas", "matplotlib", "numba", "transformers"}

"""``deltaw report`` from the command line."""

import pytest
import torch
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.analysis.report import watch
from deltaw.cli import main
from deltaw.trainers import Recorder


@pytest.fixture
def run(tmp_path):
    model = inject(nn.ModuleDict({"query": nn.Linear(6, 6)}), LoRA(rank=2), targets=["query"])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * parameter.requires_grad
        recorder.step(1)
    return tmp_path / "run"


def test_it_says_where_the_report_is(run, tmp_path, capsys):
    out = tmp_path / "new" / "report.html"
    assert main(["report", str(run), "-o", str(out), "--no-check"]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.stat().st_size > 1e6
    assert main(["report", str(run), "-o", str(out), "--no-check", "--details", "all", "-q"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, ["-o", "report.pdf"]),
        (2, ["--details", "0"]),
        (2, ["--details", "some"]),
        (2, ["--every", "0"]),
        (2, ["--modules", "nothing*"]),
    ],
)
def test_wrong_calls_are_one_line(code, words, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), "--no-check", *words]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.glob("*.html"))


def test_watch_ends_with_a_page_that_follows_no_more(run, tmp_path, monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", stop)
    monkeypatch.setattr(watch.watched, "__kwdefaults__", watch.watched.__kwdefaults__ | {"wait": stop})
    assert main(["report", str(run), "-o", str(tmp_path / "r.html"), "--no-check", "--watch"]) == 130
    assert "waiting for checkpoints" in capsys.readouterr().out
    assert '"watch":null' in (tmp_path / "r.html").read_text(encoding="utf-8")

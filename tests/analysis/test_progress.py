"""Progress: a bar on a terminal, a few lines anywhere else, nothing where none is wanted."""

import io
import subprocess
import sys
import time

import pytest

from deltaw.analysis import progress as module
from deltaw.analysis.progress import progress


def test_a_log_gets_one_line_at_the_start_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(500), "changes of bora", "pair")) == list(range(500))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["changes of bora: 0 of 500 pairs", "changes of bora: 500 pairs in 0:00"]


def test_a_log_gets_at_most_one_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress(None, "train", "step") as bar:
        for _ in range(100):
            now[0] += 3
            bar.note(loss="0.5")
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: begins",
        *(f"train: {20 * k} steps after {k}:00, loss 0.5" for k in range(1, 6)),
        "train: 100 steps in 5:00, loss 0.5",
    ]


def test_work_that_goes_on_or_breaks_off_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress(8, "train", "step", initial=5)
    bar.update()
    bar.close()
    bar.close()
    assert capsys.readouterr().err.splitlines() == ["train: 5 of 8 steps", "train: ended at 6 of 8 in 0:00"]


def test_nothing_is_shown_where_none_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter([1, 2]), "changes", "pair", False)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert module.shows_bars()
    assert list(progress([1, 2], "ranks", "matrix")) == [1, 2]
    assert "ranks: 100%" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_importing_it_loads_no_bar() -> None:
    # deltaw.analysis itself may load it until its names are lazy: only what this module loads is looked at.
    code = (
        "import sys, deltaw.analysis; sys.modules.pop('tqdm', None); import deltaw.analysis.progress as p; "
        "list(p.progress([1], 'x')); sys.exit('tqdm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0

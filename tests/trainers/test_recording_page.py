"""The page on recording says what is so: its loop runs, and its table has every option."""

import inspect
import re
from pathlib import Path

from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder

PAGE = (Path(__file__).parents[2] / "docs" / "recording.md").read_text(encoding="utf-8")


def test_the_loop_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE).group(1), namespace)
    assert Trajectory.open("runs/mine").steps == [0, 10, 20, 30]
    assert namespace["changes"]["delta_d/base/0/row"] > 0


def test_every_option_is_in_the_table():
    table = PAGE[PAGE.index("## Options") :].split("\n\n")[1]
    options = list(inspect.signature(Recorder).parameters)[2:]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == options

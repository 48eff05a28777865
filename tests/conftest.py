"""Data small enough to train on in a test."""

import gc
import json
import math
import os
import signal

import pytest
from PIL import Image

from deltaw.analysis.tables.kept import keeper
from deltaw.trainers.cola.data import BUILTIN

EXHAUSTIVE = os.environ.get("CI") == "true"


def pytest_collection_modifyitems(config, items):
    """Leave to CI the values that a test's ``always`` mark does not list; a test named on the command line gets all."""
    if EXHAUSTIVE or any("::" in argument for argument in config.args):
        return
    kept, left = [], []
    for item in items:
        mark = item.get_closest_marker("always")
        listed = mark is None or all(item.callspec.params[name] in values for name, values in mark.kwargs.items())
        (kept if listed else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_configure():
    """Let Ctrl-C end the programs that a test starts: what a script starts in the background ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Take what the imports have made out of the garbage collector, which a Trainer calls after every training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(request, monkeypatch):
    """Where whole experiments are trained, wait for the disk on CI alone; the tests of recording always do."""
    if request.path.parent.name in ("cola", "vl", "reproduce") and not EXHAUSTIVE:
        monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    """Print as into a pipe: a process of pytest-xdist may be told the width of a terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    """Keep no table beside the runs of a test, however long a slow machine takes to make it."""
    monkeypatch.setattr(keeper, "PAYS", math.inf)


@pytest.fixture
def small(tmp_path):
    """A folder with 48 training and 16 development sentences of the built-in corpus, in GLUE's layout."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, count in (("train.tsv", 48), ("dev.tsv", 16)):
        lines = (BUILTIN / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:count]))
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A folder with 12 training and 4 development examples of each of the VL tasks, over pictures of one colour."""
    folder = tmp_path_factory.mktemp("scenes")
    colors = ("red", "green", "blue", "black")
    for split, count in (("train", 12), ("dev", 4)):
        lines = []
        for number in range(count):
            color, other = colors[number % 4], colors[(number + number // 4) % 4]
            names = [f"{split}-{number}.png", f"{split}-{(number + number // 4) % 4}.png"]
            Image.new("RGB", (16, 16), color).save(folder / names[0])
            one = {"pictures": names[:1]}
            lines += [
                {"task": "vqa", "text": "what color is it?", "answers": [color] * 6 + ["large"] * 4} | one,
                {"task": "gqa", "text": f"is it {other}?", "answers": ["yes" if color == other else "no"]} | one,
                {"task": "nlvr", "text": "both are the same", "answers": [str(color == other).lower()]}
                | {"pictures": names},
                {"task": "caption", "answers": [f"a {color} picture", f"all is {color}"]} | one,
            ]
        lines[2] |= {"answers": ["false"], "text": "both are not the same"}  # both classes in either part
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder

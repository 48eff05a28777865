"""A corpus small enough to train on in a test."""

import pytest

from deltaw.trainers.cola.data import BUILTIN


@pytest.fixture
def small(tmp_path):
    """A folder with 48 training and 16 development sentences of the built-in corpus, in GLUE's layout."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, count in (("train.tsv", 48), ("dev.tsv", 16)):
        lines = (BUILTIN / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:count]))
    return folder

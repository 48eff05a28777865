"""Notebooks are kept without outputs; `make notebooks` runs them."""

import ast
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_is_one():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            assert not cell.outputs, f"cell {number} holds outputs"
            assert cell.execution_count is None, f"cell {number} holds a count of its runs"
            ast.parse("\n".join(line for line in cell.source.split("\n") if not line.startswith("%")))
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert set(notebook.metadata.kernelspec) == {"display_name", "language", "name"}
    assert notebook.metadata.kernelspec.name == "python3"

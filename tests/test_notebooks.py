"""Notebooks keep small outputs, so that they show their pictures where they are read; `make notebooks` runs them."""

import ast
import base64
import io
import re
import runpy
import tomllib
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = runpy.run_path(str(ROOT / "notebooks" / "run.py"))

by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_some():
    assert len(NOTEBOOKS) >= 4


@by_notebook
def test_is_sound(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in code_cells(path):
        ast.parse("\n".join(line for line in cell.source.split("\n") if not line.startswith("%")))
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert set(notebook.metadata.kernelspec) == {"display_name", "language", "name"}
    assert notebook.metadata.kernelspec.name == "python3"


@by_notebook
def test_keeps_the_outputs_of_one_run_from_the_first_cell_to_the_last(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "python notebooks/run.py --write"
    outputs = [output for cell in cells for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2
    for picture in pictures:
        assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@by_notebook
def test_is_small(path):
    assert path.stat().st_size <= RUN["BYTES"]


@by_notebook
def test_names_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    pictures = re.compile(r'"image/png": "[^"]*"')
    found = re.findall(r"(?:/(?:tmp|home|root|work|usr|var|opt|Users|mnt)/|[A-Z]:\\\\)[^\s\"]*", pictures.sub("", text))
    assert not found


@by_notebook
def test_names_extras_that_there_are(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = RUN["extras"](nbformat.read(path, as_version=4))
    assert "notebook" in extras
    assert extras <= set(project["optional-dependencies"])


@by_notebook
def test_links_lead_somewhere(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#\s]+)", cell.source):
                assert "://" in target or (path.parent / target).exists()


def test_libraries_of_other_extras_are_hidden():
    hidden = RUN["hidden"]({"notebook"})
    assert {"transformers", "peft"} <= set(hidden)
    assert not {"torch", "matplotlib", "IPython", "ipykernel", "matplotlib_inline", "re2"} & set(hidden)
    assert "transformers" not in RUN["hidden"]({"vl", "notebook"})


def test_a_picture_is_made_smaller_and_the_same_each_time():
    written = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(written, "PNG", compress_level=0)
    picture = base64.b64encode(written.getvalue()).decode()
    smaller = RUN["smaller"](picture)
    assert smaller == RUN["smaller"](picture)
    assert len(smaller) < len(picture)
    assert Image.open(io.BytesIO(base64.b64decode(smaller))).size == (256, 256)


def test_words_that_changed_are_seen_and_numbers_are_not():
    """A run compared the kinds of outputs alone, so that an output of older code could stay for ever."""

    def printed(text):
        cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text=text)])
        return RUN["words"](nbformat.v4.new_notebook(cells=[cell]))

    assert printed("lora: loss 0.078 after 1,200 steps") == printed("lora: loss -7e-05 after 120 steps")
    assert printed("layers.1.q 0.5\nlayers.10.v 3\n") == printed("layers.2.v 0.25\nlayers.7.q 1e3\n")
    assert printed("peft.r: 4 | 8") != printed("rank: 4 | 8")

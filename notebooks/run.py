"""Run every notebook from the first cell to the last, in an empty folder: ``python notebooks/run.py [NAME …]``.

The notebooks keep their outputs, so that their pictures are seen where they are read. ``--write`` makes these anew;
without it the files stay as they are, and a run fails where a cell gives another kind of output than it keeps, or other
words: numbers may differ, as they do from one machine to another.

A notebook names the extras that it needs in its first cell, as `deltaw[vl,notebook]`. Here it finds the libraries of
these extras and no others, though more are installed.
"""

import argparse
import base64
import importlib.metadata
import io
import os
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).parent.parent
SECONDS_A_CELL = 600
SECONDS = 120  # a notebook, on two cores that have nothing else to do
BYTES = 300_000  # a notebook with its outputs
ENVIRONMENT = {  # of the kernel: outputs must not depend on the terminal, the number of cores or a network
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
# Runs in the kernel before the first cell: libraries of other extras are not found.
HIDE = """
import sys


class Seeing:
    hidden = frozenset({hidden!r})

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Seeing(finder) for finder in sys.meta_path]
del Seeing, sys
"""


def extras(notebook: Any) -> set[str]:
    """Return the extras that the first cell names."""
    found = re.search(r"deltaw\[([a-z,]+)\]", notebook.cells[0].source)
    return set(found[1].split(",")) if found else set()


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """Return the installed distributions that requirements bring, by normal names."""
    seen: set[tuple[str, str]] = set()
    todo = [(normal(one.name), extra) for one in requirements for extra in ("", *one.extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for one in map(Requirement, requires(name)):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                todo += [(normal(one.name), more) for more in ("", *one.extras)]
    return {name for name, _ in seen}


def requires(name: str) -> list[str]:
    """Return what a distribution requires; deltaw's own list is that of this checkout."""
    if name == "deltaw":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        groups = project["optional-dependencies"].items()
        return project["dependencies"] + [f"{one}; extra == '{group}'" for group, ones in groups for one in ones]
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # of another platform
        return []


def normal(name: str) -> str:
    """Return a distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def hidden(wanted: set[str]) -> list[str]:
    """Return the installed top-level modules that deltaw with these extras does not bring."""
    there = closure([Requirement(f"deltaw[{','.join(sorted(wanted))}]"), Requirement("pip"), Requirement("setuptools")])
    owners = importlib.metadata.packages_distributions()
    return sorted(module for module, names in owners.items() if not {normal(name) for name in names} & there)


def execute(notebook: Any, folder: Path) -> None:
    """Run all cells of a notebook in a folder; its outputs are then those of this run."""
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "hide.py").write_text(HIDE.format(hidden=hidden(extras(notebook))), encoding="utf-8")
    place = folder / "work"
    place.mkdir()
    client = NotebookClient(
        notebook,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(place)}},
    )
    client.execute(env=os.environ | ENVIRONMENT | {"IPYTHONDIR": str(folder / "ipython")})
    tidy(notebook)


def tidy(notebook: Any) -> None:
    """Leave out of the outputs what differs from run to run, and what is only said on the way."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = smaller(output.data["image/png"])
            cell.metadata = {}
    notebook.metadata.language_info = {"name": "python"}
    nbformat.validate(notebook)


def smaller(picture: str) -> str:
    """Return a PNG in base64 with 256 colours, which is a third of its size; the same bytes for the same picture."""
    read = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    written = io.BytesIO()
    read.quantize(256, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def kinds(notebook: Any) -> list[list[str]]:
    """Return for each code cell which kinds of output it has: "stream", "text/plain", "image/png", …."""
    return [
        sorted(kind for output in cell.outputs for kind in output.get("data", {output.output_type: None}))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def words(notebook: Any) -> list[list[str]]:
    """Return for each code cell the words it prints, sorted: numbers and the order of rows depend on the machine."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
            found.append(sorted(NUMBER.sub("#", " ".join(texts)).split()))
    return found


def main() -> int:
    """Print a line a notebook; return 1 where one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="beginnings of names, as 04; all by default")
    parser.add_argument("--write", action="store_true", help="keep the outputs in the notebooks")
    given = parser.parse_args()
    failed = 0
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        if given.names and not path.name.startswith(tuple(given.names)):
            continue
        notebook = nbformat.read(path, as_version=4)
        kept = kinds(notebook), words(notebook)
        start = time.perf_counter()
        verdict = "ran"
        with tempfile.TemporaryDirectory() as folder:
            try:
                execute(notebook, Path(folder))
                text = nbformat.writes(notebook) + "\n"
                if len(text.encode()) > BYTES:
                    verdict = f"FAILED: {len(text.encode()):,} bytes with its outputs, more than {BYTES:,}"
                elif given.write:
                    path.write_text(text, encoding="utf-8")
                    verdict = f"written, {len(text.encode()):,} bytes"
                elif (kinds(notebook), words(notebook)) != kept:
                    verdict = f"FAILED: other outputs than it keeps; python notebooks/run.py --write {path.stem}"
            except CellExecutionError as error:
                verdict = f"FAILED: {error.ename}: {error.evalue}\n{error.traceback}"
        failed += verdict.startswith("FAILED")
        seconds = time.perf_counter() - start
        slow = f", more than {SECONDS}" if seconds > SECONDS else ""
        print(f"{path.name}: {verdict} ({seconds:.0f} s{slow})", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

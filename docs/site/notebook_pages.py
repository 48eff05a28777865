"""The notebooks as pages, with the outputs that they keep."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))


def pages() -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """Yield (Markdown, name, pictures by file name) of each notebook."""
    for path in NOTEBOOKS:
        parts: list[str] = []
        pictures: dict[str, bytes] = {}
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                parts.append(cell.source)
                continue
            parts.append(f"```python\n{cell.source}\n```")
            for output in cell.outputs:
                data = output.get("data", {})
                if "image/png" in data:
                    file = f"{path.stem}_{len(pictures) + 1}.png"
                    pictures[file] = base64.b64decode(data["image/png"])
                    parts.append(f"![A figure, drawn by the code above]({file})")
                else:
                    parts.append(_shown(output, data))
        yield "\n\n".join([*parts, ""]), path.stem, pictures


def _shown(output: Any, data: dict[str, str]) -> str:
    """An output that is no picture: a table as a table, else its text."""
    html = data.get("text/html", "")
    if "<table" in html:
        table = html[html.index("<table") : html.rindex("</table>")] + "</table>"
        return "\n".join(line for line in table.split("\n") if line.strip())
    text = output.get("text") or data.get("text/plain", "")
    return f"```text\n{text.rstrip()}\n```"


def index() -> str:
    """Return the list of the notebooks."""
    about = "From recorded runs to figures, and how to read them. CI runs each from the first cell to the last.\n"
    lines = ["# Notebooks\n", about, "```{toctree}", "", *(path.stem for path in NOTEBOOKS), "```", ""]
    return "\n".join(lines)

"""From a docstring of this project to Markdown: its sections become headings, lists and code."""

import inspect
import re
from typing import Any

SECTIONS = ("Arguments", "Returns", "Raises", "Source", "Example")
_HEAD = re.compile(rf"^({'|'.join(SECTIONS)})(?:, raises)?:[ \t]*$", re.MULTILINE)
_ITEM = re.compile(r"^(\*{0,2}[A-Za-z_][\w.*]*(?:, \*{0,2}[A-Za-z_][\w.*]*)*): ", re.MULTILINE)


def sections(doc: str) -> dict[str, str]:
    """Return the text before the first section under "", and each section without its indent.

    >>> sections("One.\\n\\nSource:\\n    A paper.")
    {'': 'One.', 'Source': 'A paper.'}
    """
    parts = _HEAD.split(inspect.cleandoc(doc))
    found = {"": parts[0].strip()}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        found[name] = inspect.cleandoc(text)
    return found


def items(text: str) -> list[tuple[str, str]]:
    """Return (names, what is said of them) of a section of "names: text" entries; names are "" where there are none.

    >>> items("a, b: Two.\\n    More.\\nc: One.")
    [('a, b', 'Two. More.'), ('c', 'One.')]
    """
    parts = _ITEM.split(text)
    found = [("", _joined(parts[0]))] if parts[0].strip() else []
    return found + [(name, _joined(said)) for name, said in zip(parts[1::2], parts[2::2], strict=True)]


def body(text: str) -> str:
    """Return running text, in which an indented block is a formula."""
    lines, formula = [], False
    for line in text.split("\n"):
        indented = line.startswith("    ") and not re.match(r"\s+([-*]|\d+\.) ", line)
        if indented and not formula and (not lines or not lines[-1].strip() or lines[-1].endswith(":")):
            lines += ["```text"] if not lines or not lines[-1].strip() else ["", "```text"]
            formula = True
        elif formula and line.strip() and not line.startswith("    "):
            while not lines[-1].strip():
                lines.pop()
            lines += ["```", ""]
            formula = False
        lines.append(line[4:] if formula else _plain(line))
    return "\n".join(lines).rstrip() + ("\n```" if formula else "")


def markdown(doc: str | None, level: int = 3) -> str:
    """Return a whole docstring as Markdown, its sections with headings of this level; 0 for bold words."""
    if not doc:
        return ""
    found = sections(doc)
    parts = [body(found[""])]
    for name in SECTIONS:
        if name not in found:
            continue
        parts.append(f"{'#' * level} {name}" if level else f"**{name}**")
        if name in ("Arguments", "Raises"):
            parts.append("\n".join(f"- `{one}`: {said}" if one else f"- {said}" for one, said in items(found[name])))
        elif name == "Example":
            parts.append(f"```python\n{found[name]}\n```")
        else:
            parts.append(body(found[name]))
    return "\n\n".join(parts)


def signature(thing: Any) -> str:
    """Return "(a, b=1)" of something that is called, with its types as they are written."""
    try:
        shown = inspect.signature(thing)
    except (TypeError, ValueError):
        return "()"
    kept = []
    for one in shown.parameters.values():
        default = one.default
        if default is not one.empty and " at 0x" in repr(default):
            default = _Shown("…")
        note = one.annotation if isinstance(one.annotation, str | type) else one.empty
        kept.append(one.replace(default=default, annotation=_quoted(note)))
    returned = shown.return_annotation if isinstance(shown.return_annotation, str | type) else shown.empty
    return str(shown.replace(parameters=kept, return_annotation=_quoted(returned)))


class _Shown:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _quoted(note: Any) -> Any:
    return note if isinstance(note, type) or note is inspect.Parameter.empty else _Shown(note)


def _plain(line: str) -> str:
    """A line of text: double backticks are code already; what Markdown would take for marks stays as it is."""
    parts = re.split(r"(`+[^`]+`+)", line)
    return "".join(
        part if part.startswith("`") else re.sub(r"(?<=\S)\*|\*(?=\S)|[<|]", r"\\\g<0>", part) for part in parts
    )


def _joined(text: str) -> str:
    return _plain(" ".join(text.split()))

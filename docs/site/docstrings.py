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
        inside, *after = re.split(r"^(?=\S)", text, maxsplit=1, flags=re.MULTILINE)
        found[name] = inspect.cleandoc(inside)
        found[""] = "\n\n".join([found[""], *(part.strip() for part in after)])  # a paragraph below a section
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


def signature(thing: Any, width: int = 0) -> str:
    """Return "(a, b=1)" of something that is called, with its types; a line each where it is wider than ``width``."""
    try:
        shown = inspect.signature(thing)
    except (TypeError, ValueError):
        return "()"
    kept = []
    for one in shown.parameters.values():
        default = _Shown("…") if " at 0x" in repr(one.default) else one.default
        kept.append(one.replace(default=default, annotation=_type(one.annotation)))
    returned = shown.empty if inspect.isclass(thing) else _type(shown.return_annotation)
    text = str(shown.replace(parameters=kept, return_annotation=returned))
    if not width or len(text) <= width:
        return text
    lines = [str(one) for one in kept]
    by_name = [number for number, one in enumerate(kept) if one.kind is one.KEYWORD_ONLY]
    if by_name and not any(one.kind is one.VAR_POSITIONAL for one in kept):
        lines.insert(by_name[0], "*")
    end = "" if returned is shown.empty else f" -> {returned!r}"
    return "(\n    " + ",\n    ".join(lines) + f",\n){end}"


class _Shown:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _type(note: Any) -> Any:
    """A type as it is written in the code, without the modules that its names are of."""
    if note is inspect.Parameter.empty:
        return note
    text = note if isinstance(note, str) else inspect.formatannotation(note)
    return _Shown(re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text))


def _plain(line: str) -> str:
    """A line of text: double backticks are code already; what Markdown would take for marks stays as it is."""
    parts = re.split(r"(`+[^`]+`+)", line)
    return "".join(
        part if part.startswith("`") else re.sub(r"(?<=\S)\*|\*(?=\S)|[<|]", r"\\\g<0>", part) for part in parts
    )


def _joined(text: str) -> str:
    return _plain(" ".join(text.split()))

"""A page a method: formula, options, source and counts, from the registry and the class's docstring."""

import inspect
import re

from docstrings import body, items, sections

from deltaw.adapters.errors import OptionError
from deltaw.adapters.methods.registry import METHODS

OUT, IN, RANK = 768, 768, 8


def pages() -> dict[str, str]:
    """Return the pages by their place, the list of them first."""
    names = list(METHODS)
    lines = ["# All methods\n", "W₀ is the frozen matrix, [out, in]; B A the low-rank product; s = α/r.\n"]
    lines += ["| name | method | W' |", "|---|---|---|"]
    lines += [
        f"| [`{name}`]({slug(name)}.md) | {METHODS[name]().title} | {METHODS[name]().formula} |" for name in names
    ]
    lines += ["", "What they share, and where a paper and its code differ: [the methods](../methods.md).", ""]
    lines += ["```{toctree}", ":hidden:", "", *(slug(name) for name in names), "```", ""]
    return {"methods/index.md": "\n".join(lines)} | {f"methods/{slug(name)}.md": page(name) for name in names}


def slug(name: str) -> str:
    """The file name of a method's page."""
    return name.replace("+", "-plus")


def page(name: str) -> str:
    """Return a method's page."""
    make = METHODS[name]
    method = make()
    kind = type(method)
    found = sections(inspect.getdoc(kind) or "")
    lines = [f"# `{name}`: {method.title}\n"]
    if method.formula:
        words = method.formula[0].islower()  # "the same, …", "every weight is trained"
        lines.append(f"{_sentence(method.formula)}\n" if words else f"```text\nW' = {method.formula}\n```\n")
    lines += [body(found[""]), ""]
    given = getattr(make, "keywords", {})
    if given:
        said = ", ".join(f"`{key}={value!r}`" for key, value in given.items())
        lines.append(f"`{name}` is `{kind.__name__}` with {said}.\n")
    if method.injects:
        lines += ["## Use it\n", "```python", "from deltaw.adapters import create, inject", ""]
        lines += [f'inject(model, create("{name}"), targets=["*.query", "*.value"])', "```\n"]
    lines += [f"```console\n$ deltaw train cola --method {name} --out runs/{slug(name)}\n```\n"]
    lines += ["## Options\n", *options(make, kind), ""]
    if method.counts:
        lines += ["## Trainable parameters\n", f"Of a matrix: {method.counts}.", ""]
        if method.injects:
            try:
                number = sum(_size(shape) for shape in method.shapes(OUT, IN).values())
                lines += [f"With the default options and a matrix of {OUT} × {IN}: {number:,} of {OUT * IN:,}.", ""]
            except (OptionError, ValueError):
                pass
    source = found.get("Source") or method.source
    if source:
        lines += ["## Source\n", body(source), ""]
    lines.append(f"Class [`{kind.__name__}`](../api/adapters.md#{kind.__name__.lower()}) of `deltaw.adapters`.\n")
    return "\n".join(lines)


def options(make: object, kind: type) -> list[str]:
    """Return the table of a method's options, with what the classes that it is made of say of each."""
    said: dict[str, str] = {}
    for one in kind.__mro__:
        for names, text in items(sections(one.__doc__ or "").get("Arguments", "")):
            for name in re.findall(r"\w+", names):
                if not text.startswith("See "):
                    said.setdefault(name, text)
    lines = ["| option | default | |", "|---|---|---|"]
    for option in inspect.signature(make).parameters.values():  # type: ignore[arg-type]
        if option.kind is option.VAR_KEYWORD or option.kind is option.VAR_POSITIONAL:
            continue
        default = "" if option.default is option.empty else f"`{option.default!r}`"
        lines.append(f"| `{option.name}` | {default} | {said.get(option.name, '')} |")
    return lines if len(lines) > 2 else ["It has none."]


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."

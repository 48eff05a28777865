"""The API: what each package hands on, from its stub, with the docstrings as they stand."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from docstrings import markdown, signature

ROOT = Path(__file__).parent.parent.parent
PACKAGES = {
    "deltaw": "deltaw/__init__.pyi",
    "deltaw.adapters": "adapters/__init__.pyi",
    "deltaw.trainers": "trainers/__init__.pyi",
    "deltaw.analysis": "analysis/__init__.pyi",
    "deltaw.analysis.figures": "analysis/figures/__init__.pyi",
    "deltaw.analysis.claims": "analysis/claims/__init__.pyi",
    "deltaw.trainers.cola": "trainers/cola/__init__.pyi",
}
_NAME = re.compile(r"^from \S+ import \w+ as (\w+)$", re.MULTILINE)


def pages() -> dict[str, str]:
    """Return the pages by their place, the list of them first."""
    lines = ["# The API\n", "Each name is imported when it is asked for. What has no page here is not public.\n"]
    lines += [f"- [`{name}`]({slug(name)}.md): {_first(importlib.import_module(name))}" for name in PACKAGES]
    lines += ["", "```{toctree}", ":hidden:", "", *map(slug, PACKAGES), "```", ""]
    return {"api/index.md": "\n".join(lines)} | {f"api/{slug(name)}.md": page(name) for name in PACKAGES}


def slug(package: str) -> str:
    """The file name of a package's page."""
    return package.removeprefix("deltaw.").replace(".", "-")


def names(package: str) -> list[str]:
    """Return what a package hands on, in the stub's order."""
    return _NAME.findall((ROOT / PACKAGES[package]).read_text(encoding="utf-8"))


def page(package: str) -> str:
    """Return a package's page."""
    module = importlib.import_module(package)
    lines = [f"# `{package}`\n", f"{_first(module)}\n"]
    for name in names(package):
        thing = getattr(module, name)
        lines.append(f"## {name}\n")
        home = "" if package == "deltaw" else _elsewhere(package, thing)
        lines.append(entry(package, name, thing) if not home else f"{home}\n")
    return "\n".join(lines)


def entry(package: str, name: str, thing: Any) -> str:
    """Return what is said of one name: its signature, its docstring, and of a class its methods."""
    if inspect.isclass(thing):
        shown = "" if issubclass(thing, Exception) else signature(thing)
        lines = [f"::::::{{py:class}} {package}.{name}{shown}\n", markdown(thing.__doc__, 0), ""]
        for key, member in vars(thing).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if key.startswith("_") or not (inspect.isfunction(function) or isinstance(member, property)):
                continue
            doc = inspect.getdoc(getattr(thing, key)) if not isinstance(member, property) else inspect.getdoc(member)
            kind = "property" if isinstance(member, property) else "method"
            shown = "" if isinstance(member, property) else _without_self(signature(function))
            lines += [f":::::{{py:{kind}}} {key}{shown}\n", markdown(doc, 0), ":::::\n"]
        return "\n".join([*lines, "::::::\n"])
    if callable(thing):
        return f"::::::{{py:function}} {package}.{name}{signature(thing)}\n\n{markdown(thing.__doc__, 0)}\n::::::\n"
    doc = type(thing).__doc__ if type(thing).__module__.startswith("deltaw") else ""
    return f"::::::{{py:data}} {package}.{name}\n\n{markdown(doc, 0)}\n::::::\n"


def _elsewhere(package: str, thing: Any) -> str:
    """A line that leads to the page of a name that ``deltaw`` hands on as well."""
    top = importlib.import_module("deltaw")
    for name in names("deltaw"):
        if getattr(top, name) is thing:
            return f"As [`deltaw.{name}`](deltaw.md#{name.lower()})."
    return ""


def _without_self(shown: str) -> str:
    return re.sub(r"^\((?:self|cls)(?:, )?", "(", shown)


def _first(module: ModuleType) -> str:
    return (module.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")

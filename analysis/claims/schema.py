"""From a TOML document to a pack: every key is known, every text is bounded, every name is one that there is."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaw.analysis.claims.arguments import WrongArgumentError, checked
from deltaw.analysis.claims.claim import Claim
from deltaw.analysis.claims.latex import COLUMNS, FIELDS
from deltaw.analysis.claims.measuring import Measure
from deltaw.analysis.claims.pack import Pack, PackClaim, PackFigure, PackTable, Paper
from deltaw.analysis.claims.rules import BOUNDS, RULES, Rule, within
from deltaw.analysis.claims.toml_lines import Document, read_toml

FORMAT = 1
MOST = {"claims": 2000, "figures": 100, "authors": 500, "columns": 12, "rules": 200, "roles": 50}
LINE, TEXT = 500, 8000  # characters of a line of text, and of a longer one
_NAME = re.compile(r"[a-z0-9][a-z0-9+._-]{0,79}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._/+-]{0,79}")
_ARXIV = re.compile(r"\d{4}\.\d{4,5}(v\d+)?|[a-z.-]{2,20}/\d{7}(v\d+)?", re.IGNORECASE)
_LINK = re.compile(r"https?://[!-~]{1,400}")

Where = tuple[str | int, ...]


class _Reader:
    """Takes the values out of a document, and says with their line what is wrong with them."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def fail(self, said: str, *where: str | int) -> Exception:
        return self.document.error(said, *where)

    def keys(self, table: Any, where: Where, known: Sequence[str], required: Sequence[str]) -> dict[str, Any]:
        """A table with known keys."""
        if not isinstance(table, dict):
            raise self.fail(f"must be a table with {', '.join(known)}", *where)
        for key in table:
            if key not in known:
                raise self.fail(f"is not known here; there are {', '.join(known)}", *where, key)
        for key in required:
            if key not in table:
                raise self.fail(f"lacks {key}" if where else f"{key} is missing", *where)
        return table

    def tables(self, values: Any, name: str) -> list[Any]:
        """A list of tables, [[name]]."""
        if not isinstance(values, list):
            raise self.fail(f"must be tables with the head [[{name}]]", name)
        self.count(values, name)
        return values

    def count(self, values: Any, *where: str | int) -> None:
        most = MOST[str(where[-1])]
        if len(values) > most:
            raise self.fail(f"are {len(values)}; at most {most} are read", *where)

    def text(self, value: Any, *where: str | int, most: int = LINE, empty: bool = False) -> str:
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self.fail("must be a text", *where)
        if len(value) > most:
            raise self.fail(f"has {len(value)} characters; at most {most} are read", *where)
        return " ".join(value.split())

    def fitting(self, value: Any, pattern: re.Pattern[str], what: str, *where: str | int) -> str:
        found = self.text(value, *where)
        if not pattern.fullmatch(found):
            raise self.fail(f"must be {what}, not {found[:60]!r}", *where)
        return found

    def number(self, value: Any, *where: str | int) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e12:
            raise self.fail("must be a finite number", *where)
        return float(value)


def load_pack(path: str | Path, *, measures: Mapping[str, Measure] | None = None, source: str = "") -> Pack:
    """Return the pack in a TOML file; it is read as data, and nothing in it is run.

    Arguments:
        path: The file; see docs/packs.md for what stands in it.
        measures: More measures than ``MEASURES``, by the names that its claims use: for a package that brings its own.
        source: What the pack is said to be from; the file's name where it is empty.

    Raises:
        PackError: It cannot be read, or something in it is unknown, missing or out of bounds; names the line.

    Example:
        >>> from deltaw.analysis.claims.found import shipped_file
        >>> load_pack(shipped_file("bora"))
        Pack(bora: BoRA, 51 claims)
    """
    return pack_of(read_toml(path), measures=measures, source=source or str(path))


def pack_of(document: Document, *, measures: Mapping[str, Measure] | None = None, source: str = "") -> Pack:
    """Return the pack in a document; see ``load_pack``."""
    from deltaw.analysis.claims.registry import MEASURES

    read, known = _Reader(document), MEASURES | dict(measures or {})
    keys = ("format", "name", "about", "paper", "roles", "rules", "claims", "figures", "table")
    whole = read.keys(document.values, (), keys, ("format", "name", "paper", "claims"))
    if whole["format"] != FORMAT or isinstance(whole["format"], bool):
        raise read.fail(f"is {whole['format']!r:.40}; this version reads {FORMAT}", "format")
    rules = RULES | _rules(read, whole.get("rules", {}))
    paper = _paper(read, whole["paper"])
    claims: dict[str, PackClaim] = {}
    for index, table in enumerate(read.tables(whole["claims"], "claims")):
        one = _claim(read, table, ("claims", index), paper.short, rules, known)
        if one.id in claims:
            raise read.fail(f"is {one.id!r}, which an earlier claim has", "claims", index, "id")
        claims[one.id] = one
    figures = [_figure(read, table, i) for i, table in enumerate(read.tables(whole.get("figures", []), "figures"))]
    roles = read.keys(whole.get("roles", {}), ("roles",), tuple(whole.get("roles", {})), ())
    read.count(roles, "roles")
    return Pack(
        name=read.fitting(whole["name"], _NAME, "small letters, digits, -, +, . and _", "name"),
        paper=paper,
        claims=tuple(claims.values()),
        figures=tuple(figures),
        table=_table(read, whole.get("table", {}), claims),
        about=read.text(whole.get("about", ""), "about", most=TEXT, empty=True),
        roles={read.text(role, "roles", role): read.text(text, "roles", role) for role, text in roles.items()},
        source=source or document.source,
        measures={one.measure: known[one.measure] for one in claims.values()},
    )


def _paper(read: _Reader, table: Any) -> Paper:
    keys = ("short", "title", "authors", "year", "key", "venue", "journal", "arxiv", "doi", "url")
    found = read.keys(table, ("paper",), keys, keys[:5])
    authors = found["authors"]
    if not isinstance(authors, list) or not authors:
        raise read.fail("must be a list of names", "paper", "authors")
    read.count(authors, "paper", "authors")
    if "venue" in found and "journal" in found:
        raise read.fail("stands beside a venue; a paper has one of them", "paper", "journal")
    year = found["year"]
    if isinstance(year, bool) or not isinstance(year, int) or not 1900 <= year <= 2200:
        raise read.fail("must be a year", "paper", "year")
    patterns = {
        "key": (_KEY, "a key of BibTeX"),
        "arxiv": (_ARXIV, "a number of arXiv, as 2402.09353"),
        "doi": (re.compile(r"10\.\d{4,9}/[!-~]{1,200}"), "a DOI, as 10.1000/182"),
        "url": (_LINK, "an address with http:// or https://"),
    }
    fitting = {name: read.fitting(found[name], *patterns[name], "paper", name) for name in patterns if name in found}
    texts = {
        name: read.text(found[name], "paper", name) for name in ("short", "title", "venue", "journal") if name in found
    }
    return Paper(authors=tuple(read.text(name, "paper", "authors") for name in authors), year=year, **texts, **fitting)


def _rules(read: _Reader, table: Any) -> dict[str, Rule]:
    named = read.keys(table, ("rules",), tuple(table) if isinstance(table, dict) else (), ())
    read.count(named, "rules")
    return {name: _rule(read, rule, {}, "rules", name) for name, rule in named.items()}


def _rule(read: _Reader, value: Any, rules: Mapping[str, Rule], *where: str | int) -> Rule:
    """A rule by its name, or by its bounds."""
    if isinstance(value, str):
        if value not in rules:
            raise read.fail(f"is {value[:60]!r}; choose one of {', '.join(rules)}, or give bounds", *where)
        return rules[value]
    found = read.keys(value, where, ("text", *BOUNDS, "disagrees"), ())
    text = read.text(found.get("text", ""), *where, "text", empty=True)
    contrary = found.get("disagrees")
    return within(
        text,
        _bounds(read, {name: found[name] for name in BOUNDS if name in found}, *where),
        None if contrary is None else _bounds(read, contrary, *where, "disagrees", both=True),
    )


def _bounds(read: _Reader, value: Any, *where: str | int, both: bool = False) -> dict[str, float]:
    """One or two bounds that leave something between them, or for ``both`` sides outside them."""
    found = read.keys(value, where, BOUNDS, ())
    bounds = {name: read.number(found[name], *where, name) for name in found}
    low = [bounds[name] for name in ("above", "at_least") if name in bounds]
    high = [bounds[name] for name in ("below", "at_most") if name in bounds]
    if not bounds or len(low) > 1 or len(high) > 1:
        raise read.fail("must have one bound or two: above or at_least, below or at_most", *where)
    strict = "above" in bounds or "below" in bounds
    if not both and low and high and (low[0] > high[0] or (strict and low[0] == high[0])):
        raise read.fail(f"holds no number: {low[0]:g} to {high[0]:g}", *where)
    return bounds


def _claim(
    read: _Reader, table: Any, where: Where, short: str, rules: Mapping[str, Rule], measures: Mapping[str, Measure]
) -> PackClaim:
    keys = ("id", "says", "quote", "where", "number", "measured", "measure", "with", "rule")
    found = read.keys(table, where, keys, ("id", "says", "where", "measure", "rule"))
    name = read.text(found["measure"], *where, "measure")
    if name not in measures:
        raise read.fail(f"is {name[:60]!r}; choose one of {', '.join(measures)}", *where, "measure")
    given = found.get("with", {})
    if not isinstance(given, dict):
        raise read.fail(f"must be a table with {', '.join(measures[name].arguments)}", *where, "with")
    try:
        options = checked(measures[name].arguments, given)
        measures[name].needs(**options)  # refuses what cannot stand together
    except WrongArgumentError as error:
        raise read.fail(error.said, *where, "with", *error.key.split(".")) from None
    claim = Claim(
        short,
        read.text(found["where"], *where, "where"),
        read.text(found["says"], *where, "says"),
        read.number(found["number"], *where, "number") if "number" in found else None,
    )
    return PackClaim(
        id=read.fitting(found["id"], _NAME, "small letters, digits, -, +, . and _", *where, "id"),
        claim=claim,
        measured=read.text(found.get("measured", measures[name].about), *where, "measured"),
        measure=name,
        options=options,
        rule=_rule(read, found["rule"], rules, *where, "rule"),
        quote=read.text(found.get("quote", ""), *where, "quote", most=TEXT, empty=True),
    )


def _figure(read: _Reader, table: Any, index: int) -> PackFigure:
    where = ("figures", index)
    found = read.keys(table, where, ("name", "where", "options"), ("name", "where"))
    options = found.get("options", {})
    plain = isinstance(options, dict) and all(
        isinstance(value, (str, int, float)) and not isinstance(value, bool) for value in options.values()
    )
    if not plain or len(options) > MOST["columns"]:
        raise read.fail("must be a table of texts and numbers, those of deltaw plot", *where, "options")
    return PackFigure(
        name=read.fitting(found["name"], _NAME, "the name of a figure of deltaw plot", *where, "name"),
        where=read.text(found["where"], *where, "where"),
        options={
            read.text(name, *where, "options"): read.text(value, *where, "options", name)
            if isinstance(value, str)
            else _finite(read, value, *where, "options", name)
            for name, value in options.items()
        },
        line=read.document.line(*where),
    )


def _finite(read: _Reader, value: float, *where: str | int) -> float:
    if not math.isfinite(value):
        raise read.fail("must be a finite number", *where)
    return value


def _table(read: _Reader, table: Any, claims: Mapping[str, PackClaim]) -> PackTable:
    found = read.keys(table, ("table",), ("caption", "columns", "only"), ())
    columns = found.get("columns", COLUMNS)
    if not isinstance(columns, dict) or not columns:
        raise read.fail(f"must be a table from heads to {', '.join(FIELDS)}", "table", "columns")
    read.count(columns, "table", "columns")
    for head, field in columns.items():
        if field not in FIELDS:
            raise read.fail(f"is {field!r:.60}; choose one of {', '.join(FIELDS)}", "table", "columns", head)
    only = found.get("only", [])
    if not isinstance(only, list):
        raise read.fail("must be a list of ids of claims", "table", "only")
    for one in only:
        if one not in claims:
            raise read.fail(f"names {one!r:.60}, which no claim has as id", "table", "only")
    return PackTable(
        columns={read.text(head, "table", "columns", head): field for head, field in columns.items()},
        caption=read.text(found.get("caption", ""), "table", "caption", empty=True),
        only=tuple(only),
    )

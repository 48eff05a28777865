"""Packs: what a file may hold, what is refused and where, and where packs are found."""

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from deltaw.adapters import OptionError
from deltaw.adapters.errors import DataError, DeltawWarning, PackError
from deltaw.analysis import load_pack, packs
from deltaw.analysis.claims import (
    MEASURES,
    PAPERS,
    RULES,
    Evidence,
    Measure,
    bibtex,
    claims,
    claims_latex,
    find_pack,
    found,
)
from deltaw.analysis.claims.arguments import text
from deltaw.analysis.claims.found import SHIPPED, Packs, shipped_file
from deltaw.analysis.claims.interval import Measured
from deltaw.analysis.claims.rules import decide, within
from deltaw.analysis.claims.toml_lines import Document

HEAD = """format = 1
name = "mine"

[paper]
short = "Mine"
title = "A paper of mine"
authors = ["A. Author", "B. Author"]
year = 2026
key = "author2026"
"""
CLAIM = """
[[claims]]
id = "one"
says = "LoRA changes magnitudes less than Full FT"
where = "Table 1"
measure = "change ratio"
with = { pairs = "initial", quantity = "delta_m", over = { method = "lora" }, under = { method = "ft" } }
rule = "less"
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.toml") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_a_pack_is_read_from_a_file(write):
    path = write(HEAD + CLAIM)
    pack = load_pack(path)
    assert (pack.name, pack.source, len(pack.claims)) == ("mine", str(path), 1)
    (one,) = pack.claims
    assert one.options["over"] == {"method": "lora", "axes": ("row", "column")}
    assert one.options["kind"] is None
    assert one.measured == MEASURES["change ratio"].about
    assert one.rule is RULES["less"]
    (need,) = pack.needs()
    assert (need.table, need.methods, need.axes) == ("initial", ("lora", "ft"), ("row", "column"))
    (outcome,) = claims(Evidence(), [pack])
    assert outcome.note == "missing: a run of lora and of ft"
    assert find_pack(path).claims == pack.claims
    assert repr(pack) == "Pack(mine: Mine, 1 claims)"


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_is_whole_and_says_where(name):
    pack = find_pack(name)
    assert (pack.name, pack.source) == (name, "deltaw")
    assert pack.paper.authors
    assert pack.paper.arxiv
    for one in pack.claims:
        assert one.claim.sentence
        assert one.claim.source
        assert set(one.options) == set(MEASURES[one.measure].arguments)
    sentences = [(one.claim.source, one.claim.sentence) for one in pack.claims]
    assert len(set(sentences)) == len(sentences)
    outcomes = claims(Evidence(), [name])
    assert {outcome.verdict for outcome in outcomes} == {"unclear"}
    assert all(outcome.missing for outcome in outcomes)


def test_all_packs_are_listed_and_the_four_are_the_default():
    assert list(packs()) == list(SHIPPED)
    assert SHIPPED[:4] == PAPERS
    assert sum(len(find_pack(name).claims) for name in PAPERS) == 199
    assert len(claims(Evidence())) == 199
    assert len(claims(Evidence(), ["bora", "bora"])) == 51


# What is put in place of what, the line that is named, and what is said of it.
MISTAKES = {
    "unknown-key": ('short = "Mine"', 'shorrt = "Mine"', 5, r"paper\.shorrt is not known here; there are short, title"),
    "missing-key": ('key = "author2026"\n', "", 4, "paper lacks key"),
    "no-claims": (CLAIM, "", None, "claims is missing"),
    "format": ("format = 1", "format = 2", 1, "format is 2; this version reads 1"),
    "name": ('name = "mine"', 'name = "../mine"', 2, "name must be small letters"),
    "year": ("year = 2026", 'year = "2026"', 8, r"paper\.year must be a year"),
    "authors": ('["A. Author", "B. Author"]', "[1]", 7, r"paper\.authors must be a text"),
    "key": ('key = "author2026"', 'key = "a}{b"', 9, "must be a key of BibTeX"),
    "measure": ('"change ratio"', '"change"', 15, "is 'change'; choose one of asymmetry, change ratio"),
    "argument": (
        'quantity = "delta_m"',
        'quantity = "delta"',
        16,
        "quantity must be one of delta_m, delta_d, not 'delta'",
    ),
    "inner-argument": ('{ method = "ft" }', '{ metod = "ft" }', 16, r"with\.under\.metod is not known here"),
    "missing-argument": ('pairs = "initial", ', "", 16, r"with\.pairs is missing; it takes consecutive or initial or"),
    "kind": ('pairs = "initial",', 'pairs = "initial", kind = "key",', 16, r'with\.kind is for pairs = "base"'),
    "rule": ('rule = "less"', 'rule = "lesss"', 17, "is 'lesss'; choose one of symmetric"),
    "no-bounds": ('rule = "less"', 'rule = { text = "?" }', 17, "must have one bound or two"),
    "two-lows": ('rule = "less"', "rule = { above = 1, at_least = 2 }", 17, "must have one bound or two"),
    "empty-rule": ('rule = "less"', "rule = { above = 1, below = 1 }", 17, "holds no number: 1 to 1"),
    "infinite": ('rule = "less"', "rule = { above = inf }", 17, r"rule\.above must be a finite number"),
    "id-twice": (CLAIM, CLAIM + CLAIM, 20, "is 'one', which an earlier claim has"),
    "long": ('where = "Table 1"', f'where = "{"x" * 501}"', 14, "has 501 characters; at most 500 are read"),
    "syntax": ('where = "Table 1"', 'where = "Table 1', 14, "not closed"),
    "deep": ('rule = "less"', f"rule = {'[' * 50}", 17, "nested more than 8 deep"),
    "claims-no-list": (CLAIM, "\n[claims]\nid = 3\n", 11, r"claims must be tables with the head \[\[claims\]\]"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line(mistake, write):
    old, new, line, said = MISTAKES[mistake]
    whole = HEAD + CLAIM
    assert old in whole
    path = write(whole.replace(old, new))
    with pytest.raises(PackError) as error:
        load_pack(path)
    assert re.search(said, str(error.value)), str(error.value)
    assert str(error.value).startswith(f"{path}, line {line}: " if line else f"{path}: "), str(error.value)


def test_lines_are_found_behind_texts_of_several_lines(write):
    """A line that looks like a key, or a head, within a text is none."""
    text = HEAD + 'about = """\n[[claims]]\nid = "no"\n"quoted"\n"""\n'
    text = text.replace('about = """', 'venue = """') + CLAIM.replace('rule = "less"', "rule = 3")
    with pytest.raises(PackError, match=r", line 22: claims\.1\.rule must be a table"):
        load_pack(write(text))


@pytest.mark.parametrize(
    "text",
    ['"""\\"""\\"""' * 20_000, "a." * 100_000 + "a = 1", "x = " + "[" * 100_000, "x = {" + "a." * 50_000 + "a = 1}"],
    ids=["quotes", "dots", "brackets", "inline-dots"],
)
def test_a_text_that_is_made_to_be_slow_is_refused_at_once(text):
    with pytest.raises(PackError):
        Document("slow.toml", text)


def test_what_is_no_small_file_of_text_is_refused(tmp_path, write):
    with pytest.raises(OptionError, match="there is no such file"):
        find_pack(tmp_path / "none.toml")
    with pytest.raises(OptionError, match="there is no pack 'lora'; choose from dora, bora"):
        find_pack("lora")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PackError, match="no text in UTF-8"):
        load_pack(tmp_path / "bytes.toml")
    with pytest.raises(PackError, match="at most 524288 are read"):
        load_pack(write("# " + "x" * 600_000))
    with pytest.raises(PackError, match="cannot be read"):
        load_pack(tmp_path)


def test_hostile_texts_are_shown_and_obeyed_nowhere(write):
    evil = r"\\input{/etc/passwd} $x$ \u001b[2J & %"
    path = write((HEAD + CLAIM).replace("A paper of mine", evil).replace("LoRA changes", f"{evil} LoRA changes"))
    pack = load_pack(path)
    table = claims_latex(pack, claims(Evidence(), [pack]))
    cited = bibtex([pack.paper])
    for shown in (table, cited):
        assert "\x1b" not in shown
        assert r"\input" not in shown
        assert r"\textbackslash{}input\{/etc/passwd\} \$x\$" in shown
    assert r"\textbackslash{}x1b[2J \& \%" in cited
    with pytest.raises(PackError) as error:
        load_pack(write(path.read_text().replace('rule = "less"', 'rule = "\\u001b[2J"')))
    assert "\x1b" not in str(error.value)


def test_the_table_has_the_columns_and_claims_that_the_pack_says(write):
    more = (
        CLAIM.replace('"one"', '"two"').replace("Table 1", "Table 2")
        + """number = 0.5
[table]
caption = "What holds"
only = ["two"]
columns = { "It says" = "says", "n" = "paper", "seen" = "verdict" }
"""
    )
    pack = load_pack(write(HEAD + CLAIM + more))
    lines = claims_latex(pack, [decide(check) for check in pack.checks(Evidence())]).splitlines()
    assert lines[2] == r"It says & n & seen \\"
    assert lines[5] == r"LoRA changes magnitudes less than Full FT & 0.5 & unclear \\"
    assert lines[7] == r"\caption{What holds \cite{author2026}.}"
    with pytest.raises(PackError, match=r"line 30: table\.columns\.n is 'papers'"):
        load_pack(write((HEAD + CLAIM + more).replace('"paper", "seen"', '"papers", "seen"')))
    with pytest.raises(PackError, match=r"table\.only names 'three', which no claim has"):
        load_pack(write((HEAD + CLAIM + more).replace('["two"]', '["three"]')))


def test_bounds_are_rules():
    between = within("", {"above": 1, "at_most": 1.1})
    assert between.text == "> 1 and ≤ 1.1"
    assert [between.agrees(x, x) for x in (1.0, 1.05, 1.1, 1.2)] == [False, True, True, False]
    assert [between.disagrees(x, x) for x in (1.0, 1.05, 1.1, 1.2)] == [True, False, False, True]
    assert not between.agrees(0.9, 1.05)
    assert not between.disagrees(0.9, 1.05)


def points(monkeypatch, **given):
    def load(point):
        if point.name == "broken":
            raise ImportError("no module named mine")
        return given[point.name]

    made = [type("Point", (EntryPoint,), {"load": load})(name, "mine:PACK", found.ENTRY_POINTS) for name in given]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: made if group == found.ENTRY_POINTS else [])
    return Packs()


def test_a_package_brings_packs_and_measures_of_its_own(monkeypatch, write):
    """Of an entry point it may be a path, a Pack, or a function that returns one; Python comes in no other way."""
    path = write(
        HEAD + CLAIM.replace('"change ratio"', '"answer"').replace(CLAIM.splitlines()[6], 'with = { method = "x" }')
    )
    with pytest.raises(PackError, match="is 'answer'; choose one of"):
        load_pack(path)
    answer = Measure("the answer", lambda evidence, method: Measured(0.5, (0.4, 0.6)), {"method": text()})

    def own():
        return load_pack(path, measures={"answer": answer}, source="mine-package")

    plain = write(HEAD + CLAIM, "plain.toml")
    there = points(monkeypatch, own=own, plain=plain, three=lambda: 3, broken=None)
    assert list(there) == [*SHIPPED, "own", "plain", "three", "broken"]
    (outcome,) = claims(Evidence(), [there["own"]])
    assert (outcome.verdict, outcome.statistic, there["own"].source) == ("agrees", 0.5, "mine-package")
    assert there["plain"].source == "a package"
    with pytest.raises(PackError, match="'three' of a package is 3; it has to be a Pack"):
        there["three"]
    with pytest.raises(DataError, match="'broken' of a package cannot be loaded"):
        there["broken"]
    taken = points(monkeypatch, dora=plain)
    with pytest.warns(DeltawWarning, match="the pack 'dora' of a package has a name that is taken"):
        assert list(taken) == list(SHIPPED)


def test_the_files_are_in_the_wheel():
    setuptools = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "shipped/*.toml" in setuptools["package-data"]["deltaw.analysis.claims"]
    folder = shipped_file("dora").parent
    assert {path.stem for path in folder.glob("*")} == set(SHIPPED)

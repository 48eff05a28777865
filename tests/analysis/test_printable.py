"""Text on its way to a terminal or a spreadsheet."""

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaw.analysis.printable import printable, spreadsheet_cell, spreadsheet_safe

HOSTILE = [
    "h.0.\x1b]0;PWNED\x07\x1b[2J\x1b[31mx\x1b[0m",
    "=cmd|'/c calc'!A1",
    "@SUM(1)",
    "+1+1",
    "-1+1",
    "\t=1",
    "\r=1",
    "a\nb|c",
    "\u202egnp.exe",
    "\x9b2J",
    "half \ud800 a pair",
]


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text):
    shown = printable(text)
    assert all(character.isprintable() or character in "\u00a0\u3000" or character.isspace() for character in shown)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)


@pytest.mark.parametrize("text", ["ΔM of layer.0", "名前", "r₁ : r₂", "a\u00a0b", ""])
def test_what_can_be_shown_stays(text):
    assert printable(text) == text
    assert spreadsheet_cell(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_is_a_formula(text):
    cell = spreadsheet_cell(text)
    assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r")
    assert printable(cell) == cell


def test_in_a_table_texts_are_escaped_and_numbers_stay_numbers():
    hostile = HOSTILE[:-1]  # pandas keeps no half pair
    frame = pd.DataFrame(
        {
            "module": hostile,
            "delta": [-1.5] * len(hostile),
            "step": pd.array([None, *range(1, len(hostile))], dtype="Int64"),
            "kind": pd.Categorical(["=query"] * len(hostile)),
            "mixed": [None, -3, "-3", *[2.5] * (len(hostile) - 3)],
        }
    )
    before = frame.copy()
    rows = list(csv.DictReader(io.StringIO(spreadsheet_safe(frame).to_csv(index=False))))
    assert [row["module"] for row in rows] == [spreadsheet_cell(text) for text in hostile]
    assert {row["delta"] for row in rows} == {"-1.5"}
    assert rows[0]["step"] == ""
    assert rows[1]["step"] == "1"
    assert {row["kind"] for row in rows} == {"'=query"}
    assert [row["mixed"] for row in rows[:3]] == ["", "-3", "'-3"]
    pd.testing.assert_frame_equal(frame, before)

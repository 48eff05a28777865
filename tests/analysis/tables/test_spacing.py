"""How far apart checkpoints are, in words."""

import pandas as pd
import pytest

from deltaw.analysis.tables.spacing import spacing, spacing_of


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([[0, 20, 40]], "every 20 steps"),
        ([[0, 20, 40, 44]], "every 20 steps"),  # training ended between two
        ([[0, 20, 44]], "20 to 24 steps apart"),
        ([[0, 1, 2]], "every step"),
        ([[0, 10, 20], [0, 5, 10]], "5 to 10 steps apart"),
        ([[0, 1, 10, 2000]], "1 to 1,990 steps apart"),
        ([[7], []], ""),
        ([], ""),
    ],
)
def test_spacing(runs, expected) -> None:
    assert spacing(runs) == expected


def test_spacing_of_a_table() -> None:
    frame = pd.DataFrame(
        {"run": ["a", "a", "b"], "method": "lora", "step_from": [0, 10, pd.NA], "step_to": [10, 20, 3]}
    )
    assert spacing_of(frame, "step_from", "step_to") == "every 10 steps"
    frame.attrs["spacing"] = "every 5 steps"
    assert spacing_of(frame, "step_from", "step_to") == "every 5 steps"
    assert spacing_of(frame[["step_to"]].assign(), "step_to") == "every 5 steps"

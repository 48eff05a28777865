"""The squares of runs × runs: what was measured below the diagonal, chance above it."""

import numpy as np
import pandas as pd
import pytest

from deltaw.adapters import OptionError
from deltaw.analysis import agreement_matrix
from deltaw.analysis.figures import agreement

NAMES = ["ft", "lora", "do$ra"]


def table(kinds=("query", "value"), step=9, names=NAMES):
    draw = np.random.default_rng(0)
    rows = [
        {
            "run_first": one, "run_second": two, "step_first": step, "step_second": step, "module": f"l.{layer}.{kind}",
            "layer": layer, "kind": kind, "entries": 100 * (1 + layer), "norm_first": 1.0 + layer, "norm_second": 2.0,
            "cosine": draw.uniform(-1, 1), "cosine_chance": 0.1, "sign_agreement": draw.uniform(0, 1),
            "sign_expected": 0.48, "sign_chance": 0.05, "jaccard": draw.uniform(0, 1), "jaccard_expected": 0.2,
            "jaccard_expected_rows": 0.2, "jaccard_expected_columns": 0.2, "visible_first": 0.5, "visible_second": 0.4,
        }
        for i, one in enumerate(names)
        for two in names[i + 1 :]
        for kind in kinds
        for layer in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_measured_below_and_chance_above():
    frame = table()
    figure = agreement(frame)
    squares = [ax.images[0] for ax in figure.axes if ax.images]
    assert len(squares) == 3
    names = ("cosine", "cosine_chance"), ("sign_agreement", "sign_expected"), ("jaccard", "jaccard_expected")
    for square, (measured, chance) in zip(squares, names, strict=True):
        drawn, want = square.get_array(), agreement_matrix(frame, measured).to_numpy()
        below = np.tri(3, k=-1, dtype=bool)
        np.testing.assert_allclose(np.asarray(drawn)[below], want[below])
        np.testing.assert_allclose(np.asarray(drawn)[below.T], agreement_matrix(frame, chance).to_numpy()[below.T])
        assert drawn.mask.diagonal().all()
    texts = [text.get_text() for text in squares[0].axes.texts]
    assert texts[-1] == f"{agreement_matrix(frame).iloc[2, 1]:.2f}".replace("-", "−")
    assert sum(text.startswith("±") for text in texts) == 3
    assert [label.get_text() for label in squares[0].axes.get_xticklabels()] == ["ft", "lora", r"do\$ra"]


def test_one_kind_one_measure_and_no_numbers_among_many_runs():
    frame = table()
    figure = agreement(frame, kind="value", measure="jaccard")
    drawn = figure.axes[0].images[0].get_array()
    want = agreement_matrix(frame[frame["kind"] == "value"], "jaccard").to_numpy()
    assert drawn[2, 0] == want[2, 0]
    many = agreement(table(names=[f"run{i}" for i in range(12)]))
    assert not many.axes[0].texts


def test_what_cannot_be_drawn():
    frame = table()
    with pytest.raises(OptionError, match="which the table has not"):
        agreement(frame.drop(columns=["jaccard"]), measure="jaccard")
    with pytest.raises(OptionError, match="several rows of two runs"):
        agreement(pd.concat([frame, frame.assign(step_first=5)]))

"""Differences of scores: how often two equally good methods get a clear verdict, and what counts as guessing."""

import math

import numpy as np
import pandas as pd
import pytest

from deltaw.analysis.claims.interval import Undecidable
from deltaw.analysis.claims.scores import guessing, score_difference
from deltaw.analysis.measures.matthews import influence, matthews

N, WORLDS, SHARE = 1043, 200, 0.69  # CoLA's development set


def row(method: str, labels: np.ndarray, predictions: np.ndarray, keep: bool = True, run: str = "") -> dict:
    score = {"run": run or method, "method": method, "rank": 8, "score": "mcc", "n": len(labels)}
    score["value"] = matthews(labels, predictions)
    if keep:
        score |= {name: "".join(map(str, a)) for name, a in (("labels", labels), ("predictions", predictions))}
    return score


def two_models(phi: float, draw: np.random.Generator, shared: float) -> list[np.ndarray]:
    """Labels, and the predictions of two equally good models; ``shared`` of the second's are the first's."""
    common = (1 - phi) * (1 - SHARE) * SHARE  # either kind of error
    errors = np.array([common / (1 - SHARE), common / SHARE])  # by label
    labels = (draw.random(N) < SHARE).astype(int)
    first, second = (np.where(draw.random(N) < errors[labels], 1 - labels, labels) for _ in range(2))
    return [labels, first, np.where(draw.random(N) < shared, first, second)]


@pytest.mark.parametrize("phi", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("keep", "shared"), [(True, 0.0), (True, 0.7), (False, 0.0)])
def test_two_equally_good_methods_get_a_clear_verdict_five_times_of_a_hundred(phi, keep, shared):
    draw = np.random.default_rng(int(10 * phi))
    clear, by_pearson = 0, 0
    for _ in range(WORLDS):
        labels, *both = two_models(phi, draw, shared)
        rows = [row(name, labels, one, keep) for name, one in zip(("bora", "lora"), both, strict=True)]
        found = score_difference(pd.DataFrame(rows), "mcc", "bora", "lora")
        low, high = found.interval
        clear += not low <= 0 <= high
        reach = 1.96 * math.hypot(*(1 - one["value"] ** 2 for one in rows)) / math.sqrt(N)
        by_pearson += abs(found.statistic) > reach
    assert clear / WORLDS <= 0.08
    if keep:
        assert clear / WORLDS >= 0.025  # and not by being too wide
    if not shared:
        assert by_pearson / WORLDS >= {0.3: 0.05, 0.6: 0.11, 0.9: 0.37}[phi]


def test_the_pairing_is_used():
    draw = np.random.default_rng(0)
    labels, first, second = two_models(0.6, draw, 0.9)
    rows = pd.DataFrame([row("bora", labels, first), row("lora", labels, second)])
    paired = score_difference(rows, "any", "bora", "lora")
    error = np.sqrt(np.mean((influence(labels, first) - influence(labels, second)) ** 2) / N)
    assert paired.interval[1] - paired.statistic == pytest.approx(1.96 * error)
    assert paired.note == "paired over 1043 sentences"
    unpaired = score_difference(rows.assign(labels=[rows["labels"][0], rows["labels"][1][::-1]]), "mcc", "bora", "lora")
    assert unpaired.note == "not paired, as not all predictions were kept"
    assert unpaired.interval[1] - unpaired.statistic > 2 * 1.96 * error


def test_seeds_are_averaged_sentence_by_sentence():
    draw = np.random.default_rng(1)
    labels, first, second = two_models(0.6, draw, 0.5)
    third = two_models(0.6, draw, 0.5)[1]
    rows = [row("bora", labels, first, run="a"), row("bora", labels, second, run="b"), row("lora", labels, third)]
    found = score_difference(pd.DataFrame(rows), "mcc", "bora", "lora")
    moved = (influence(labels, first) + influence(labels, second)) / 2 - influence(labels, third)
    between = np.var([rows[0]["value"], rows[1]["value"]], ddof=1) / 2
    reach = 1.96 * math.sqrt(np.mean(moved**2) / N + between)
    assert found.interval[1] - found.statistic == pytest.approx(reach)


def test_constant_predictions_are_a_guess():
    labels = (np.random.default_rng(2).random(N) < SHARE).astype(int)
    rows = [row("bora", labels, labels), row("lora", labels, np.ones(N, dtype=int)) | {"value": 0.0}]
    found = score_difference(pd.DataFrame(rows), "mcc", "bora", "lora")
    assert found.note == "lora is no better than guessing; not paired, as not all predictions were kept"
    both = [rows[1], rows[1] | {"method": "bora", "run": "bora"}]
    with pytest.raises(Undecidable, match="neither bora nor lora is better than guessing"):
        score_difference(pd.DataFrame(both), "mcc", "bora", "lora")


def test_guessing_is_told_by_every_score_that_is_known():
    def of(*scores: tuple) -> dict[str, str]:
        return guessing(pd.DataFrame(scores, columns=["run", "score", "value", "n", "prior"]))

    assert of(("a", "mcc", 0.06, 1043, None)) == {"a": "best Matthews correlation 0.06, guessing has 0 ± 0.061"}
    assert of(("a", "mcc", 0.07, 1043, None)) == {}
    assert of(("a", "mcc", 0.07, math.nan, None), ("b", "mcc", math.nan, 1043, None)) == {}  # not known
    assert of(("a", "vqa", 0.34, 200, 0.32), ("a", "caption", 1.0, 200, 1.01))["a"].startswith("VQA accuracy 0.34, ")
    assert of(("a", "vqa", 0.34, 200, 0.32), ("a", "caption", 4.0, 200, 1.01)) == {}
    assert of(("a", "vqa", 0.34, 200, None)) == {}

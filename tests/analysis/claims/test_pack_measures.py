"""The measures of the newer packs on tables whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deltaw.analysis import correlation
from deltaw.analysis.claims import CHANGES, Evidence, Outcome, claims
from deltaw.analysis.claims.curves import slope_of
from deltaw.analysis.claims.evidence import GEOMETRY, INTRUDERS
from deltaw.analysis.claims.geometry import (
    beside_chance,
    distance_growth,
    geometry_ratio,
    intruder_count,
    intruder_gain,
)
from deltaw.analysis.claims.interval import Undecidable


def cloud(slopes: dict[str, float], runs: int = 1, scale: float = 1.0) -> pd.DataFrame:
    """Changes from the base with ΔM = 2 + slope · ΔD along the columns, and a little noise."""
    draw = np.random.default_rng(0)
    rows = []
    for method, slope in slopes.items():
        for run in range(runs):
            for layer in range(6):
                for step in (10, 20, 30, 40):
                    d = draw.random()
                    m = scale * (2 + slope * d + 0.01 * draw.normal())
                    labels = (f"{method}{run}", method, f"{layer}.query", layer, "query", "column", pd.NA, step)
                    rows.append((*labels, m, d))
    return pd.DataFrame(rows, columns=list(CHANGES))


def seen(pack: str, **tables: pd.DataFrame) -> dict[str, Outcome]:
    return {outcome.claim.sentence: outcome for outcome in claims(Evidence(**tables), [pack])}


def test_the_slope_is_that_of_the_line_and_has_a_unit():
    frame = cloud({"bidora": -8.0})
    found = slope_of(frame, "query", "column", ["bidora"], lambda slope: slope)
    line = stats.linregress(frame["delta_d"], frame["delta_m"])
    assert found.statistic == pytest.approx(line.slope, rel=1e-12)
    assert found.statistic == pytest.approx(correlation(frame, by="axis")["slope"].item(), rel=1e-12)
    assert found.interval is not None
    assert found.interval[0] < -8.0 < found.interval[1]
    larger = slope_of(cloud({"bidora": -8.0}, scale=1e-9), "query", "column", ["bidora"], lambda slope: slope)
    assert larger.statistic == pytest.approx(1e-9 * found.statistic, rel=1e-9)
    two = slope_of(cloud({"bidora": -8.0}, runs=2), "query", "column", ["bidora"], lambda slope: slope)
    assert "2 runs of bidora" in two.note
    flat = frame.assign(delta_d=1.0)
    with pytest.raises(Undecidable):
        slope_of(flat, "query", "column", ["bidora"], lambda slope: slope)


def test_bidoras_numbers_can_be_slopes():
    found = seen("bidora", base=cloud({"bidora": -8.0, "dora": -1.8, "ft": -8.5}))
    own = found["BiDoRA's magnitudes change less where directions change more"]
    assert (own.verdict, own.claim.paper_number) == ("agrees", -8.042)
    assert own.statistic == pytest.approx(-8.0, abs=0.1)
    apart = found["BiDoRA's slope is steeper downwards than DoRA (column)'s"]
    assert (apart.verdict, apart.statistic) == ("agrees", pytest.approx(-6.2, abs=0.1))
    assert found["BiDoRA's r of ΔD with ΔM is negative"].statistic == pytest.approx(-1, abs=1e-3)
    turned = seen("bidora", base=cloud({"bidora": 1.0, "dora": -1.8}))
    assert turned["BiDoRA's slope is steeper downwards than DoRA (column)'s"].verdict == "disagrees"


def geometry(levels: dict[str, float], steps: tuple[int, ...] = (5, 10), matrices: int = 6) -> pd.DataFrame:
    """Columns of the geometry table at a level by method; twice that by chance, and three times at another step."""
    draw = np.random.default_rng(1)
    rows = []
    for method, level in levels.items():
        for layer in range(matrices):
            for step in steps:
                value = level * np.exp(0.05 * draw.normal()) * (1 if step == steps[-1] else 3)
                row = dict.fromkeys(GEOMETRY[6:], value)
                row |= {"rotation_random": 2 * value, "off_principal_expected": 0.9 * value}
                labels = {"run": method, "method": method, "module": f"{layer}.query", "layer": layer, "kind": "query"}
                rows.append(labels | {"step": step} | row)
    return pd.DataFrame(rows)


def test_geometry_is_compared_at_the_last_step_that_both_have():
    frame = geometry({"sft": 4.0, "rl": 1.0})
    ends = frame[frame["step"] == 10]
    found = geometry_ratio(frame, "drift", "sft", "rl")
    means = [ends.loc[ends["method"] == method, "drift"].mean() for method in ("sft", "rl")]
    assert found.statistic == pytest.approx(means[0] / means[1], rel=1e-12)
    assert found.interval is not None
    assert found.interval[0] < found.statistic < found.interval[1]
    assert found.note == "6 matrices"
    early = frame[(frame["method"] == "sft") | (frame["step"] == 5)]
    assert geometry_ratio(early, "drift", "sft", "rl").note == "6 matrices; at step 5, the last that all have"
    assert beside_chance(frame, "rotation_left", "rl").statistic == pytest.approx(0.5)
    assert beside_chance(frame, "off_principal", "rl").statistic == pytest.approx(1 / 0.9)
    with pytest.raises(Undecidable, match="no step in common"):
        geometry_ratio(frame[(frame["method"] == "sft") == (frame["step"] == 5)], "drift", "sft", "rl")
    hole = frame.assign(drift=frame["drift"].where(frame["module"] != "0.query"))
    assert geometry_ratio(hole, "drift", "sft", "rl").note == "5 matrices"
    weak = frame.assign(guessing=frame["method"].map({"rl": "it guesses"}))
    with pytest.raises(Undecidable, match="rl learned nothing"):
        geometry_ratio(weak, "drift", "sft", "rl")


def test_the_path_that_is_not_taken():
    found = seen("path-not-taken", geometry=geometry({"sft": 4.0, "rl": 1.0}))
    off = found.pop("A larger share of RL's update than of SFT's is off the principal subspaces")
    assert off.verdict == "disagrees"  # here the share is as the rest
    assert {outcome.verdict for outcome in found.values()} == {"agrees"}
    turned = seen("path-not-taken", geometry=geometry({"sft": 1.0, "rl": 1.0}))
    assert turned["SFT makes the spectrum drift markedly more than RL"].verdict == "disagrees"


def intruders(counts: dict[tuple[str, int], int]) -> pd.DataFrame:
    """So many intruders among ten vectors of each of six matrices, one more in the last."""
    rows = []
    for (method, rank), count in counts.items():
        for layer in range(6):
            for index in range(1, 11):
                labels = (f"{method}{rank}", method, f"{layer}.query", layer, "query", 10, index)
                rows.append((*labels, index <= count + (layer == 5 and count > 0)))
    frame = pd.DataFrame(rows, columns=list(INTRUDERS))
    ranks = [rank for (_, rank) in counts for _ in range(60)]
    return frame.assign(adapter_rank=pd.array([rank or pd.NA for rank in ranks], dtype="Int64"))


def test_intruders_are_counted_a_matrix():
    frame = intruders({("lora", 4): 3, ("lora", 16): 1, ("ft", 0): 0})
    low = frame[frame["run"] != "lora16"]
    assert intruder_count(low, "lora").statistic == pytest.approx(3 + 1 / 6)
    assert intruder_count(low, "lora", "ft").statistic == pytest.approx(3 + 1 / 6)
    assert intruder_gain(frame, "lora").statistic == pytest.approx(-2)
    with pytest.raises(Undecidable, match="missing: runs of lora at two ranks"):
        intruder_gain(low, "lora")
    found = seen("lora-vs-full", intruders=frame)
    decided = {text: outcome for text, outcome in found.items() if outcome.statistic is not None}
    assert len(decided) == 4
    assert {outcome.verdict for outcome in decided.values()} == {"agrees"}
    assert found["Full FT has almost no intruder dimensions"].statistic == 0
    assert found["VeRA has intruder dimensions"].note == "missing: a run of vera"
    none = seen("lora-vs-full", intruders=intruders({("lora", 4): 0, ("ft", 0): 2}))
    assert none["LoRA has intruder dimensions"].verdict == "disagrees"
    assert none["Full FT has almost no intruder dimensions"].verdict == "disagrees"


def distances(growths: dict[str, float]) -> pd.DataFrame:
    draw = np.random.default_rng(2)
    rows = []
    for method, growth in growths.items():
        for layer in range(6):
            half = 1 + draw.random()
            end = half * growth * np.exp(0.01 * draw.normal())
            for step, value in ((20, half), (40, end)):
                labels = {"run": method, "method": method, "module": f"{layer}.query", "layer": layer, "kind": "query"}
                rows.append(labels | {"step": step, "frobenius": value})
    return pd.DataFrame(rows)


def test_distances_grow_from_half_way_to_the_end():
    frame = distances({"delora": 1.01, "lora": 1.5})
    wide = frame[frame["method"] == "lora"].pivot_table(index="module", columns="step", values="frobenius")
    found = distance_growth(frame, "lora")
    assert found.statistic == pytest.approx(wide[40].mean() / wide[20].mean(), rel=1e-12)
    assert distance_growth(frame, "delora", "lora").statistic == pytest.approx(1.01 / 1.5, rel=0.02)
    outcomes = seen("delora", distances=frame)
    for sentence in (
        "DeLoRA's weights stop moving away from the base",
        "LoRA's weights move away from the base all through training",
        "DeLoRA's weights move away less than LoRA's late in training",
    ):
        assert outcomes[sentence].verdict == "agrees", outcomes[sentence]
    with pytest.raises(Undecidable, match="one recorded step alone"):
        distance_growth(frame[frame["step"] == 40], "lora")

"""BoRA's claims on tables whose answer is known."""

import json
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest

from deltaw.adapters import OptionError
from deltaw.analysis import claims
from deltaw.analysis.claims import Claim, Outcome, bora_claims, claims_json, claims_markdown
from deltaw.analysis.claims.interval import RESAMPLES, SEED, Measured, bootstrap, student
from deltaw.analysis.claims.rules import MORE, Check, Parts, asymmetry, decide
from deltaw.analysis.measures.matthews import widest_variance

METHODS = ["ft", "lora", "dora", "dora-row", "bora"]
# (columns, rows) of ΔM, and ΔD, as the paper draws them; the last digit makes no rule tight.
AS_CLAIMED = {
    "ft": ((4.0, 4.2), (4.0, 4.1)),
    "lora": ((0.4, 0.41), (2.0, 2.1)),
    "dora": ((3.0, 0.5), (3.0, 1.6)),
    "dora-row": ((0.5, 3.0), (1.6, 3.0)),
    "bora": ((2.5, 2.6), (2.2, 2.1)),
}


def table(
    levels: dict[str, tuple[tuple[float, float], tuple[float, float]]],
    pairs: str = "consecutive",
    steps: int = 8,
    layers: int = 12,
    noise: float = 0.05,
    seed: int = 0,
) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    rows = []
    for method, (magnitude, direction) in levels.items():
        for layer in range(layers):
            for place, axis in enumerate(("column", "row")):
                factors = np.exp(noise * draw.normal(size=2))
                for step in range(1, steps + 1):
                    start = step - 1 if pairs == "consecutive" else 0
                    grown = 1.0 if pairs == "consecutive" else step
                    values = (magnitude[place] * factors[0] * grown, direction[place] * factors[1] * grown)
                    labels = (method, method, f"{layer}.query", layer, "query", axis, start, step)
                    rows.append((*labels, *values))
    return pd.DataFrame(rows, columns=list(claims.CHANGES))


def results(**changed: dict[str, float]) -> pd.DataFrame:
    base = {
        "lora": {"best_mcc": 0.6082, "n_dev": 1043, "seconds_per_epoch": 139.0, "trainable": 300_000},
        "dora": {"best_mcc": 0.6183, "n_dev": 1043, "seconds_per_epoch": 176.0, "trainable": 320_000},
        "bora": {"best_mcc": 0.6193, "n_dev": 1043, "seconds_per_epoch": 179.0, "trainable": 340_000},
    }
    return pd.DataFrame([{"method": method} | row | changed.get(method, {}) for method, row in base.items()])


def run(levels=AS_CLAIMED, found=None, **options) -> dict[str, Outcome]:
    tables = table(levels, **options), table(levels, pairs="initial", **options)
    outcomes = bora_claims(*tables, results() if found is None else found)
    assert len(outcomes) == 51
    return {outcome.claim.sentence: outcome for outcome in outcomes[:25]}  # the others want other methods and ranks


def test_a_world_as_claimed_agrees_and_its_scores_are_too_close_to_tell() -> None:
    outcomes = run()
    scores = [sentence for sentence in outcomes if "scores higher" in sentence]
    assert len(scores) == 3
    for sentence, outcome in outcomes.items():
        assert outcome.verdict == ("unclear" if sentence in scores else "agrees"), outcome
        assert outcome.claim.paper == "BoRA"
        assert outcome.statistic is not None
        if outcome.ci_low is not None and outcome.ci_high is not None:
            assert outcome.ci_low <= outcome.statistic <= outcome.ci_high
    for sentence in scores:
        assert "paper's own difference would be unclear" in outcomes[sentence].note
        assert outcomes[sentence].statistic == pytest.approx(outcomes[sentence].claim.paper_number)
    assert outcomes["DoRA (column) takes longer to train than LoRA"].statistic == pytest.approx(1.27, abs=5e-3)
    assert outcomes["BoRA takes longer to train than LoRA"].claim.paper_number == 1.29


def test_a_world_turned_around_disagrees() -> None:
    turned = {
        "ft": ((4.0, 1.0), (1.0, 4.0)),
        "lora": ((3.0, 0.5), (9.0, 1.0)),
        "dora": ((1.0, 1.05), (1.0, 1.0)),
        "dora-row": ((3.0, 0.5), (1.0, 1.0)),
        "bora": ((0.2, 0.9), (0.3, 1.2)),
    }
    found = results(
        lora={"best_mcc": 0.9, "seconds_per_epoch": 500, "trainable": 400_000},
        dora={"best_mcc": 0.7, "seconds_per_epoch": 300, "trainable": 350_000},
        bora={"best_mcc": 0.3, "seconds_per_epoch": 250},
    )
    outcomes = run(turned, found)
    comparable = "DoRA (column) changes the rows' magnitudes about as little as LoRA"
    assert outcomes.pop(comparable).statistic == pytest.approx(2.1, rel=0.1)
    assert {sentence for sentence, outcome in outcomes.items() if outcome.verdict != "disagrees"} == set()


def test_the_asymmetry_is_the_formula() -> None:
    rows = {"lora": ((1.0, 3.0), (2.0, 2.0))}
    outcomes = run(rows, noise=0.0)
    assert outcomes["LoRA's ΔM is symmetric in rows and columns"].statistic == pytest.approx(2 / 2)
    assert outcomes["LoRA's ΔD is symmetric in rows and columns"].statistic == 0
    one_sided = run({"lora": ((1.0, 0.0), (2.0, 2.0))}, noise=0.0)
    assert one_sided["LoRA's ΔM is symmetric in rows and columns"].statistic == pytest.approx(2)


def test_the_asymmetry_sees_curves_that_cross() -> None:
    frame = table({"lora": ((1.0, 1.0), (1.0, 1.0))}, noise=0.0, steps=2)
    frame.loc[(frame["axis"] == "row") & (frame["step_to"] == 1), "delta_m"] = 1.5
    frame.loc[(frame["axis"] == "row") & (frame["step_to"] == 2), "delta_m"] = 0.5
    outcomes = bora_claims(frame, table(AS_CLAIMED, "initial"), results())
    (outcome,) = [o for o in outcomes if o.claim.sentence == "LoRA's ΔM is symmetric in rows and columns"]
    assert outcome.statistic == pytest.approx(0.5)


def test_noise_between_layers_is_unclear() -> None:
    levels = AS_CLAIMED | {"lora": ((1.0, 1.35), (2.0, 2.0))}
    outcome = run(levels, noise=0.6, layers=6, seed=3)["LoRA's ΔM is symmetric in rows and columns"]
    assert outcome.verdict == "unclear"
    assert outcome.ci_low < 0.25 < outcome.ci_high


def test_the_end_is_the_last_step_that_both_have() -> None:
    steps, ends = table(AS_CLAIMED), table(AS_CLAIMED, pairs="initial")
    late = (ends["method"] == "bora") & (ends["step_to"] > 6)
    ends.loc[ends["step_to"] > 6, "delta_m"] = 1e9  # must not be looked at
    outcomes = {o.claim.sentence: o for o in bora_claims(steps, ends[~late], results())}
    outcome = outcomes["LoRA changes magnitudes markedly less than BoRA"]
    assert outcome.statistic == pytest.approx(2.55 / 0.405, rel=0.1)
    assert "at step 6, the last that both have" in outcome.note
    gone = ends[(ends["method"] != "bora") | (ends["step_to"] == 0)]
    assert "missing: a run of bora" in {o.note for o in bora_claims(steps, gone, results())}
    apart = ends.assign(step_to=ends["step_to"] + 100 * (ends["method"] == "bora"))
    assert "bora and lora have no step in common" in {o.note for o in bora_claims(steps, apart, results())}


def test_missing_methods_are_unclear_and_named() -> None:
    levels = {name: AS_CLAIMED[name] for name in ("lora", "bora")}
    found = results(bora={"seconds_per_epoch": np.nan})
    outcomes = run(levels, found[found["method"] != "dora"])
    unclear = {sentence: outcome for sentence, outcome in outcomes.items() if outcome.statistic is None}
    assert unclear["Full FT's ΔM is symmetric in rows and columns"].note == "missing: a run of ft"
    assert unclear["DoRA (column)'s ΔM is less symmetric than Full FT's"].note == "missing: a run of dora and of ft"
    assert unclear["DoRA (column) scores higher on CoLA than LoRA"].note == "missing: a result of dora"
    assert unclear["BoRA takes longer to train than LoRA"].note == "missing: seconds_per_epoch of bora"
    assert all(outcome.verdict == "unclear" and outcome.note for outcome in unclear.values())
    assert outcomes["BoRA's ΔM is symmetric in rows and columns"].verdict == "agrees"


def test_one_layer_has_a_number_but_no_interval() -> None:
    outcome = run(layers=1)["BoRA's ΔM is symmetric in rows and columns"]
    assert outcome.statistic is not None
    assert (outcome.verdict, outcome.ci_low, outcome.note) == ("unclear", None, "one layer only: no interval")


def test_undefined_numbers_and_no_change_are_unclear_not_wrong() -> None:
    steps, ends = table(AS_CLAIMED), table(AS_CLAIMED, pairs="initial")
    steps.loc[steps["method"] == "bora", ["delta_m", "delta_d"]] = 0.0
    steps.loc[(steps["method"] == "ft") & (steps["layer"] == 3), "delta_d"] = np.nan
    hole = (steps["method"] == "lora") & (steps["layer"] == 3) & (steps["step_to"] == 2)
    steps.loc[hole, "delta_d"] = np.inf
    outcomes = {o.claim.sentence: o for o in bora_claims(steps, ends, results())}
    assert "nothing changed" in outcomes["BoRA's ΔM is symmetric in rows and columns"].note
    assert "defined in every layer" in outcomes["Full FT's ΔD is symmetric in rows and columns"].note
    assert outcomes["LoRA's ΔD is symmetric in rows and columns"].verdict == "agrees"  # one step of eight is left out
    json.dumps(claims_json(list(outcomes.values())), allow_nan=False)


def test_scores_are_decided_beyond_two_standard_errors_only() -> None:
    def verdict(lora: float, bora: float, n: int) -> Outcome:
        found = results(lora={"best_mcc": lora, "n_dev": n}, bora={"best_mcc": bora, "n_dev": n})
        return run(found=found)["BoRA scores higher on CoLA than LoRA"]

    # Of no more than the scores: the widest large-sample variance of φ with 70 % of one label, not Pearson's (1 − φ²)².
    errors = [np.sqrt(widest_variance(score * 800 / 804, 0.7) / 800) for score in (0.5, 0.6)]
    reach = 1.96 * np.hypot(*errors)
    assert reach > 1.3 * 1.96 * np.hypot(1 - 0.5**2, 1 - 0.6**2) / np.sqrt(800)
    outcome = verdict(0.5, 0.6, 800)
    assert (outcome.ci_low, outcome.ci_high) == (pytest.approx(0.1 - reach), pytest.approx(0.1 + reach))
    assert outcome.verdict == "agrees"
    assert "not paired, as not all predictions were kept" in outcome.note
    assert verdict(0.5, 0.6, 680).verdict == "agrees"
    assert verdict(0.5, 0.6, 650).verdict == "unclear"
    assert verdict(0.6, 0.5, 400).verdict == "unclear"
    assert verdict(0.6, 0.5, 2000).verdict == "disagrees"


def test_time_within_three_percent_is_noise() -> None:
    def verdict(seconds: float) -> str:
        return run(found=results(bora={"seconds_per_epoch": 139 * seconds}))[
            "BoRA takes longer to train than LoRA"
        ].verdict

    assert [verdict(s) for s in (0.96, 0.98, 1.02, 1.04)] == ["disagrees", "unclear", "unclear", "agrees"]


def test_runs_of_a_method_are_averaged() -> None:
    one, two = (
        table({"bora": ((level, level), (1.0, 1.0)), "lora": ((1.0, 1.0), (1.0, 1.0))}, "initial", noise=0.0).assign(
            run=lambda frame, level=level: frame["run"] + str(level)
        )
        for level in (2.0, 4.0)
    )
    found = pd.concat([results(), results(bora={"best_mcc": 0.7, "trainable": 340_000})])
    outcomes = {
        o.claim.sentence: o for o in bora_claims(table(AS_CLAIMED), pd.concat([one, two], ignore_index=True), found)
    }
    assert outcomes["LoRA changes magnitudes markedly less than BoRA"].statistic == pytest.approx(3.0)
    score = outcomes["BoRA scores higher on CoLA than DoRA (column)"]
    assert score.statistic == pytest.approx((0.6193 + 0.7) / 2 - 0.6183)


def test_the_bootstrap_covers() -> None:
    """Of many worlds with a true ratio of 2, about 95 % of the intervals hold it; with 12 layers a few less."""
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        over, under = 2 * np.exp(0.3 * draw.normal(size=12)), np.exp(0.3 * draw.normal(size=12))
        found = bootstrap(lambda w, over=over, under=under: w.matrices @ over / (w.matrices @ under), 12, {})
        assert found.interval is not None
        held += found.interval[0] <= 2 <= found.interval[1]
    assert 0.87 <= held / 200 <= 0.99


def test_the_bootstrap_is_the_slow_one_done_at_once() -> None:
    draw = np.random.default_rng(2)
    row, column = draw.random((5, 2300)), draw.random((5, 2300))  # more steps than one block of them
    counts = np.random.default_rng(SEED).multinomial(5, np.full(5, 0.2), size=RESAMPLES)
    fast = asymmetry(counts / 5, row, column)
    for resample in (0, 7, 1999):
        layers = np.repeat(np.arange(5), counts[resample])
        r, c = row[layers].mean(axis=0), column[layers].mean(axis=0)
        assert fast[resample] == pytest.approx(np.abs(r - c).sum() / ((r + c) / 2).sum(), rel=1e-12)
    measured = bootstrap(lambda weights: asymmetry(weights.matrices, row, column), 5, {})
    assert measured.interval is not None
    reach = 2.7764451 * fast.std() * np.sqrt(5 / 4)  # Student's t with 4 degrees of freedom
    assert measured.interval == pytest.approx((max(measured.statistic - reach, 0), measured.statistic + reach))


def test_runs_are_resampled_with_the_matrices() -> None:
    """Runs that differ widen the interval; the slow way draws matrices, or runs, and takes the mean of those drawn."""
    draw = np.random.default_rng(3)
    values = draw.random((3, 4))  # (runs, matrices)
    values[0] += 2
    random = np.random.default_rng(SEED)
    matrices, runs = (random.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in (4, 3))
    slow = (
        [values[:, np.repeat(np.arange(4), drawn)].mean() for drawn in matrices],
        [values[np.repeat(np.arange(3), drawn)].mean() for drawn in runs],
    )
    many = bootstrap(lambda weights: weights.both("bora") @ values.reshape(-1), 4, {"bora": 3})
    over_matrices, over_runs = (np.var(found) * n / (n - 1) for found, n in zip(slow, (4, 3), strict=True))
    freedom = (over_matrices + over_runs) ** 2 / (over_matrices**2 / 3 + over_runs**2 / 2)
    reach = student(freedom) * np.sqrt(over_matrices + over_runs)
    assert many.interval == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert many.statistic == pytest.approx(values.mean())
    assert many.note == "4 matrices, 3 runs of bora"
    one = bootstrap(lambda weights: weights.both("bora") @ values.mean(axis=0), 4, {"bora": 1})
    assert one.interval is not None
    assert many.interval is not None
    assert many.interval[1] - many.interval[0] > 2 * (one.interval[1] - one.interval[0])


def test_the_same_tables_give_the_same_outcomes_and_stay_as_they_are() -> None:
    steps, ends, found = table(AS_CLAIMED), table(AS_CLAIMED, pairs="initial"), results()
    copies = steps.copy(), ends.copy(), found.copy()
    assert bora_claims(steps, ends, found) == bora_claims(steps, ends, found)
    for frame, copy in zip((steps, ends, found), copies, strict=True):
        pd.testing.assert_frame_equal(frame, copy)


def test_the_order_of_rows_does_not_matter() -> None:
    steps, ends = table(AS_CLAIMED), table(AS_CLAIMED, pairs="initial")
    mixed = [frame.sample(frac=1, random_state=0) for frame in (steps, ends, results())]
    for one, other in zip(bora_claims(steps, ends, results()), bora_claims(*mixed), strict=True):
        assert (one.verdict, one.note) == (other.verdict, other.note)
        assert (one.statistic or 0) == pytest.approx(other.statistic or 0, rel=1e-12)


def test_layers_are_told_apart_by_module_where_there_is_no_number() -> None:
    unnumbered = [table(AS_CLAIMED, pairs).assign(layer=pd.NA) for pairs in ("consecutive", "initial")]
    assert [o.verdict for o in bora_claims(*unnumbered, results())][:25] == [o.verdict for o in run().values()]


def test_wrong_tables_are_refused() -> None:
    steps, ends = table(AS_CLAIMED), table(AS_CLAIMED, pairs="initial")
    with pytest.raises(OptionError, match="kind 'key'; there are query"):
        bora_claims(steps, ends, results(), kind="key")
    with pytest.raises(OptionError, match="divide by 100"):
        bora_claims(steps, ends, results(lora={"best_mcc": 60.82}))
    with pytest.raises(OptionError, match="no column n_dev"):
        bora_claims(steps, ends, results().drop(columns="n_dev"))
    with pytest.raises(OptionError, match="consecutive"):
        bora_claims(ends, ends, results())
    with pytest.raises(OptionError, match="initial"):
        bora_claims(steps, steps, results())


def test_markdown_has_a_row_a_claim() -> None:
    outcomes = list(run().values())
    text = claims_markdown(outcomes)
    head, _, *lines = text.rstrip().splitlines()
    assert head == "25 claims: 22 agree, 0 disagree, 3 unclear."
    assert len(lines) == 2 + 25
    cells = [line.strip("|").split("|") for line in lines]
    assert {len(row) for row in cells} == {7}
    for outcome, line in zip(outcomes, lines[2:], strict=True):
        assert outcome.claim.sentence in line
        assert outcome.claim.source in line
        assert f"**{outcome.verdict}**" in line
    piped = Outcome(Claim("BoRA", "p. 1", "|a| is\nless"), "unclear", None, None, None, "a | b")
    assert "\\|a\\| is less" in claims_markdown([piped])


def test_json_is_flat_and_strict() -> None:
    outcomes = list(run({"lora": AS_CLAIMED["lora"]}).values())
    rows = json.loads(json.dumps(claims_json(outcomes), allow_nan=False))
    assert {tuple(row) for row in rows} == {
        ("paper", "source", "sentence", "paper_number", "verdict", "statistic", "ci_low", "ci_high", "rule", "note")
    }
    assert rows[0]["statistic"] is None


def test_a_run_that_learned_nothing_confirms_no_claim_about_trained_models() -> None:
    """Two epochs with a Matthews correlation of 0 confirmed more of the claims than a run that had learned."""
    nothing = {method: {"best_mcc": 0.0} for method in ("lora", "dora", "bora")}
    found = pd.concat([results(**nothing), pd.DataFrame([{"method": m} for m in ("ft", "dora-row")])])
    found.loc[found["n_dev"].isna(), ["best_mcc", "n_dev"]] = [0.03, 1043]  # within the 0.061 that guessing reaches
    outcomes = run(found=found)
    decided = {sentence for sentence, outcome in outcomes.items() if outcome.verdict != "unclear"}
    assert decided == {
        "DoRA (column) trains more parameters than LoRA",
        "BoRA trains more parameters than DoRA (column)",
        "DoRA (column) takes longer to train than LoRA",
        "BoRA takes longer to train than LoRA",
    }
    assert outcomes["BoRA's ΔM is symmetric in rows and columns"].note == (
        "bora learned nothing: best Matthews correlation 0, guessing has 0 ± 0.061"
    )
    assert outcomes["BoRA scores higher on CoLA than LoRA"].note == "neither bora nor lora is better than guessing"
    learned = run(found=results(lora={"best_mcc": 0.0}))
    assert learned["BoRA's ΔM is symmetric in rows and columns"].verdict == "agrees"
    assert learned["LoRA changes magnitudes markedly less than BoRA"].verdict == "unclear"
    assert "lora is no better than guessing" in learned["BoRA scores higher on CoLA than LoRA"].note


def at_the_end(levels: dict = AS_CLAIMED, found: pd.DataFrame | None = None) -> dict[str, Outcome]:
    tables = table(levels), table(levels, pairs="initial")
    return {o.claim.sentence: o for o in bora_claims(*tables, results() if found is None else found)[31:]}


def test_figure_3_is_symmetric_too_and_figure_2_has_sizes() -> None:
    outcomes = {sentence: outcome for sentence, outcome in at_the_end().items() if sentence.startswith("From")}
    assert len(outcomes) == 10
    assert {outcome.verdict for outcome in outcomes.values()} == {"agrees"}
    columns = outcomes["From step to step DoRA (column) changes the columns' magnitudes markedly more than LoRA"]
    assert columns.statistic == pytest.approx(3.0 / 0.4, rel=0.1)
    assert columns.note == "12 matrices, 8 pairs of steps"
    turned = at_the_end(AS_CLAIMED | {"bora": ((1.0, 0.2), (2.2, 2.1)), "dora": ((0.5, 0.5), (1.0, 1.0))})
    verdicts = {sentence: outcome.verdict for sentence, outcome in turned.items()}
    assert verdicts["From start to end BoRA's ΔM is symmetric in rows and columns"] == "disagrees"
    assert verdicts["From start to end DoRA (column)'s ΔM is not symmetric in rows and columns"] == "disagrees"
    assert verdicts["From step to step BoRA changes the rows' magnitudes more than LoRA"] == "disagrees"
    assert verdicts["From step to step BoRA changes the columns' magnitudes more than LoRA"] == "agrees"


def test_the_symmetry_at_the_end_looks_at_the_last_step_alone() -> None:
    ends = table(AS_CLAIMED, pairs="initial")
    ends.loc[(ends["step_to"] < 8) & (ends["axis"] == "row"), "delta_m"] = 1e3
    outcomes = {o.claim.sentence: o for o in bora_claims(table(AS_CLAIMED), ends, results())}
    assert outcomes["From start to end BoRA's ΔM is symmetric in rows and columns"].verdict == "agrees"


def test_baselines_are_compared_at_the_papers_ranks() -> None:
    rows = [("bora", 8, 0.9), ("lora", 8, 0.5), ("lora", 10, 0.6), ("dora", 8, 0.7), ("dora", 9, 0.8)]
    rows += [("asylora", 8, 0.1), ("asylora", 16, 0.4), ("rslora", 8, 0.55), ("pissa", 8, 0.3), ("mora", 8, 0.2)]
    found = pd.DataFrame(rows, columns=["method", "rank", "best_mcc"])
    outcomes = at_the_end(found=found.assign(n_dev=5000, seconds_per_epoch=1.0, trainable=100))
    scores = {sentence: outcome for sentence, outcome in outcomes.items() if "scores higher" in sentence}
    assert len(scores) == 10
    assert {outcome.verdict for outcome in scores.values()} == {"agrees"}
    for sentence, difference, paper in (
        ("BoRA scores higher than LoRA", 0.4, 0.60),
        ("DoRA (column) scores higher than rsLoRA", 0.15, 0.14),
        ("BoRA scores higher than AsyLoRA of twice its rank, which has as many parameters", 0.5, 0.56),
        ("BoRA scores higher than LoRA whose rank is 2 higher, which has more parameters", 0.3, 0.42),
        ("BoRA scores higher than DoRA (column) whose rank is 1 higher, which has more parameters", 0.1, 0.47),
    ):
        assert (scores[sentence].statistic, scores[sentence].claim.paper_number) == (pytest.approx(difference), paper)
    missing = at_the_end(found=found[found["rank"] == 8].assign(n_dev=5000, seconds_per_epoch=1.0, trainable=100))
    note = missing["BoRA scores higher than LoRA whose rank is 2 higher, which has more parameters"].note
    assert note == "missing: results of bora and lora of that rank and 2 more"
    unranked = at_the_end()["BoRA scores higher than LoRA whose rank is 2 higher, which has more parameters"]
    assert (unranked.statistic, unranked.note) == (None, "missing: the ranks of bora and lora")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_defined_is_unclear_and_null(number) -> None:
    claim = Claim("BoRA", "p. 1", "it is so")
    parts = Parts({"rank 4": Measured(2.0, None), "rank 8": Measured(number, None)})
    for found, note in (
        (Measured(number, None), "the number is not defined in these runs"),
        (parts, "the number is not defined in these runs: rank 8"),
    ):
        outcome = decide(Check(claim, "a ratio", MORE, lambda found=found: found))
        assert (outcome.verdict, outcome.statistic, outcome.note) == ("unclear", None, note)
    bare = Outcome(claim, "agrees", number, number, number, "A ≤ 0.25")
    (row,) = json.loads(json.dumps(claims_json([bare]), allow_nan=False))
    assert (row["statistic"], row["ci_low"], row["ci_high"]) == (None, None, None)


def test_outcomes_are_frozen() -> None:
    outcome = next(iter(run().values()))
    with pytest.raises(FrozenInstanceError):
        outcome.verdict = "agrees"  # type: ignore[misc]

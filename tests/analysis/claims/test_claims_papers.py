"""DoRA's, SBoRA's and Dual LoRA's claims on evidence whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from deltaw.adapters import OptionError
from deltaw.analysis.claims import PAPERS, Evidence, Outcome, all_checks, claims
from deltaw.analysis.claims.curves import correlation_of, four_of
from deltaw.analysis.claims.dora import GRANULAR
from deltaw.analysis.claims.evidence import CHANGES, method_name
from deltaw.analysis.claims.rules import Undecidable, Weights, pearson
from deltaw.analysis.claims.scores import VL_TASKS, score_difference, standard_error

STEPS = (100, 200, 300, 400)


def cloud(slopes: dict[str, float], runs: int = 1, matrices: int = 6, noise: float = 0.02, seed: int = 0):
    """Changes from the base: ΔM = 1 + slope · (ΔD − ½), with a little noise, by matrix and step."""
    draw = np.random.default_rng(seed)
    rows = []
    for method, slope in slopes.items():
        for run in range(runs):
            for kind in ("query", "value"):
                for layer in range(matrices):
                    for axis in ("row", "column"):
                        for step in STEPS:
                            d = draw.random()
                            m = 1 + slope * (d - 0.5) + noise * draw.normal()
                            module = f"encoder.{layer}.{kind}"
                            rows.append((f"{method}{run}", method, module, layer, kind, axis, pd.NA, step, m, d))
    return pd.DataFrame(rows, columns=list(CHANGES))


def seen(evidence: Evidence, paper: str) -> dict[str, Outcome]:
    outcomes = claims(evidence, [paper])
    found = {f"{outcome.claim.source}: {outcome.claim.sentence}": outcome for outcome in outcomes}
    assert len(found) == len(outcomes), "two claims read the same"
    return found


def scores(*rows: tuple) -> pd.DataFrame:
    """Rows of method, rank, score's name, value, n, and the second rank of Dual LoRA where it has one."""
    frame = pd.DataFrame(
        [
            {"run": f"run{i}", "method": m, "rank": r, "score": name, "value": v, "n": n}
            | {"direction_rank": more[0] if more else (r if m.startswith("dual-lora") else None)}
            for i, (m, r, name, v, n, *more) in enumerate(rows)
        ]
    )
    return frame.astype({"rank": "Int64", "direction_rank": "Int64"})


def runs(*rows: dict) -> pd.DataFrame:
    base = {"rank": 8, "direction_rank": None, "trainable": 100.0, "share": 0.01, "seconds_per_epoch": 1.0}
    base |= {"peak_megabytes": 100.0, "on_gpu": True}
    frame = pd.DataFrame([{"run": f"run{i}"} | base | row for i, row in enumerate(rows)])
    return frame.astype({"rank": "Int64", "direction_rank": "Int64"})


def test_every_claim_has_its_source_and_rule_and_is_unclear_without_runs():
    checks = list(all_checks(Evidence()))
    outcomes = claims(Evidence())
    assert len(checks) == len(outcomes) > 150
    assert {check.claim.paper for check in checks} == {"DoRA", "BoRA", "SBoRA", "Dual LoRA"}
    for check, outcome in zip(checks, outcomes, strict=True):
        assert check.claim.source
        assert check.claim.sentence
        assert check.rule.text
        assert check.measured
        assert outcome.rule == check.text
        assert (outcome.verdict, outcome.statistic) == ("unclear", None)
        assert outcome.note.startswith("missing: "), outcome
    keys = [(c.claim.paper, c.claim.source, c.claim.sentence) for c in checks]
    assert len(set(keys)) == len(keys)
    with pytest.raises(OptionError, match="no paper 'lora'; choose from dora, bora, sbora, dual-lora"):
        claims(Evidence(), ["lora"])
    assert list(PAPERS) == ["dora", "bora", "sbora", "dual-lora"]


def test_doras_correlations_as_claimed_and_turned_around():
    claimed = cloud({"ft": -1.0, "lora": 1.0, "dora": -0.02, "dora-row": -0.02})
    for sentence, outcome in seen(Evidence(base=claimed), "dora").items():
        if "ΔM falls" in sentence or "ΔM rises" in sentence or "'s r by" in sentence:
            assert outcome.verdict != "disagrees", (sentence, outcome)
            assert outcome.statistic is not None, (sentence, outcome)
            if "DoRA" not in sentence or "LoRA's r" in sentence or "nearer" in sentence:
                assert outcome.verdict == "agrees", (sentence, outcome)
    turned = seen(Evidence(base=cloud({"ft": 1.0, "lora": -1.0, "dora": -1.0, "dora-row": -1.0})), "dora")
    for sentence, expected in (
        ("In Full FT's query matrices the columns' ΔM falls where ΔD rises", "disagrees"),
        ("In LoRA's query matrices the columns' ΔM rises with ΔD", "disagrees"),
        ("In DoRA (column)'s query matrices the columns' ΔM falls where ΔD rises", "agrees"),
        ("In query matrices LoRA's r by columns is above Full FT's", "disagrees"),
    ):
        outcome = turned[f"§4.1, Figure 2: {sentence}"]
        assert outcome.verdict == expected
        assert "6 matrices; steps 100, 200, 300, 400" in outcome.note
    assert turned["§4.1, Figure 2: In LoRA's query matrices the columns' ΔM rises with ΔD"].claim.paper_number == 0.83
    value = turned["Appendix A.1, Figure 7: In LoRA's value matrices the columns' ΔM rises with ΔD"]
    assert value.claim.paper_number is None
    key = turned[
        "Appendix A.4, Figure 8: DoRA (column) leaves the columns' magnitudes of key matrices nearer to the base than "
        "LoRA"
    ]
    assert (key.verdict, key.note) == ("unclear", "missing: a key matrix of dora and of lora")


def test_the_correlation_is_pearsons_and_resamples_whole_matrices():
    frame = cloud({"lora": 0.3}, noise=0.2)
    found = correlation_of(frame, "query", "column", ["lora"], lambda r: r)
    rows = frame[(frame["kind"] == "query") & (frame["axis"] == "column")]
    assert found.statistic == pytest.approx(np.corrcoef(rows["delta_d"], rows["delta_m"])[0, 1], rel=1e-12)
    x, y = (rows[name].to_numpy().reshape(1, 6, 4) for name in ("delta_d", "delta_m"))
    counts = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), size=50)
    fast = pearson(Weights(counts / 6, {"lora": np.ones((50, 1))}), "lora", x * 1e-9, y * 1e-9)
    for resample, drawn in enumerate(counts):
        picked = np.repeat(np.arange(6), drawn)
        slow = np.corrcoef(x[0, picked].ravel(), y[0, picked].ravel())[0, 1]
        assert fast[resample] == pytest.approx(slow, rel=1e-9)


def test_points_of_one_matrix_are_not_independent():
    """A course in time that all steps of a matrix share must not narrow the interval as more points would."""
    frame = cloud({"lora": 0.0}, matrices=5)
    shift = np.linspace(-1, 1, 5)
    frame["delta_d"] = frame["layer"].map(dict(enumerate(shift))) + 0.001 * frame["delta_d"]
    frame["delta_m"] = 2 + frame["layer"].map(dict(enumerate(shift[[1, 0, 2, 4, 3]]))) + 0.001 * frame["delta_m"]
    few = correlation_of(frame, "query", "column", ["lora"], lambda r: r)
    repeated = pd.concat([frame, *(frame.assign(step_to=frame["step_to"] + k) for k in (1, 2))])
    many = correlation_of(repeated, "query", "column", ["lora"], lambda r: r)
    assert few.interval is not None
    assert many.interval is not None
    widths = [high - low for low, high in (few.interval, many.interval)]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)
    assert widths[0] > 0.2


def test_the_correlations_of_runs_are_averaged_not_pooled():
    apart = cloud({"lora": 1.0}, runs=2, noise=0.0)
    apart.loc[apart["run"] == "lora1", "delta_m"] += 50  # pooled, r would be near 0
    found = correlation_of(apart, "query", "column", ["lora"], lambda r: r)
    assert found.statistic == pytest.approx(1.0)
    assert "2 runs of lora" in found.note


def test_four_steps_are_taken_and_step_0_is_no_point():
    assert four_of(range(0, 101)) == [25, 50, 75, 100]
    frame = cloud({"lora": 1.0})
    start = frame[frame["step_to"] == 100].assign(step_to=0, delta_m=0.0, delta_d=0.0)
    with_start = correlation_of(pd.concat([frame, start]), "query", "column", ["lora"], lambda r: r)
    without = correlation_of(frame, "query", "column", ["lora"], lambda r: r)
    assert with_start == without
    with pytest.raises(Undecidable, match="no recorded step after the start"):
        correlation_of(start, "query", "column", ["lora"], lambda r: r)


def test_cross_attention_is_left_out_of_doras_figures():
    frame = cloud({"lora": 1.0})
    cross = cloud({"lora": -5.0}, seed=1)
    cross["module"] = cross["module"].str.replace("encoder.", "decoder.encoder_attn.")
    one, other = (
        seen(Evidence(base=base), "dora")["§4.1, Figure 2: In LoRA's query matrices the columns' ΔM rises with ΔD"]
        for base in (frame, pd.concat([frame, cross]))
    )
    assert one == other


def test_doras_distances_from_the_base():
    frame = cloud({"ft": 0.0, "lora": 0.0, "dora": 0.0, "dora-row": 0.0}, noise=0.0)
    factors = frame["method"].map({"ft": 0.1, "lora": 1.0, "dora": 3.0, "dora-row": 0.5})
    frame["delta_m"], frame["delta_d"] = factors, factors
    found = seen(Evidence(base=frame), "dora")

    def outcome(start: str) -> Outcome:
        (one,) = [o for text, o in found.items() if start in text]
        return one

    assert outcome("DoRA (column) leaves the columns' magnitudes of query").verdict == "disagrees"
    assert outcome("DoRA (column) moves the columns' directions of query").verdict == "agrees"
    assert outcome("DoRA (row) leaves the rows' magnitudes of query").verdict == "agrees"
    assert outcome("DoRA (row) moves the rows' directions of value").verdict == "disagrees"
    assert outcome("Full FT leaves the columns' directions of value").statistic == pytest.approx(0.1)


def test_scores_of_the_tasks_and_their_mean():
    values = {"lora": (0.60, 0.5, 0.7, 1.10), "dora": (0.70, 0.5, 0.6, 1.15), "ft": (0.70, 0.5, 0.6, 1.15)}
    rows = [
        (method, None if method == "ft" else 8, task, value, 4000)
        for method, found in values.items()
        for task, value in zip(VL_TASKS, found, strict=True)
    ]
    found = seen(Evidence(scores=scores(*rows)), "dora")
    table = "§5.2, Table 2: DoRA (column)"
    assert found[f"{table} has a higher VQA accuracy than LoRA"].verdict == "agrees"
    assert found[f"{table} has a higher GQA accuracy than LoRA"].verdict == "unclear"
    assert found[f"{table} has a higher NLVR² accuracy than LoRA"].verdict == "disagrees"
    assert found[f"{table} has a higher CIDEr of the captions than LoRA"].verdict == "unclear"
    mean = found[f"{table} has a higher mean of the four scores than LoRA"]
    assert mean.statistic == pytest.approx((0.1 - 0.1 + 0.05) / 4)
    both = [[standard_error(t, v, 4000) for t, v in zip(VL_TASKS, values[m], strict=True)] for m in ("dora", "lora")]
    reach = 1.96 * math.sqrt(sum(e**2 for one in both for e in one)) / 4
    assert mean.ci_high == pytest.approx(mean.statistic + reach)
    assert found[f"{table} reaches the score of Full FT on image-text tasks"].statistic == 0
    assert "missing: results of dora and lora at two ranks" in {o.note for o in found.values()}


def test_seeds_widen_a_score_by_what_lies_between_them():
    one = scores(("lora", 8, "mcc", 0.5, 1000), ("dora", 8, "mcc", 0.5, 1000))
    spread = scores(
        *((m, 8, "mcc", v, 1000) for m in ("lora", "dora") for v in ((0.3, 0.5, 0.7) if m == "dora" else (0.5,)))
    )
    (near,), (wide,) = ([score_difference(frame, "mcc", "dora", "lora")] for frame in (one, spread))
    assert near.statistic == wide.statistic == pytest.approx(0)
    error = math.sqrt(2 * standard_error("mcc", 0.5, 1000) ** 2 + 0.04 / 3)
    assert wide.interval == pytest.approx((-1.96 * error, 1.96 * error))


def test_ranks_are_compared_like_with_like():
    rows = [("lora", r, "mcc", v, 100_000) for r, v in ((4, 0.3), (8, 0.5), (16, 0.52))]
    rows += [("dora", r, "mcc", v, 100_000) for r, v in ((4, 0.5), (8, 0.56), (16, 0.53))]
    found = seen(Evidence(scores=scores(*rows)), "dora")
    lowest = found["§5.1, Table 1 (LLaMA-7B): DoRA (column) scores higher than LoRA"]
    assert lowest.statistic == pytest.approx(0.2)
    half = found["§5.1, Table 1 (DoRA†, LLaMA-7B): DoRA (column) scores higher than LoRA of twice its rank"]
    assert half.statistic == pytest.approx(0.0)  # 4 against 8
    every = found["§5.5, Figure 5, Table 15: DoRA (column) scores higher than LoRA at every rank"]
    assert every.verdict == "agrees"
    assert "above at 3 of 3" in every.note
    assert "rank 16: 0.01" in every.note
    wider = next(o for text, o in found.items() if "DoRA (column) is further above LoRA at the lowest" in text)
    assert (wider.verdict, wider.statistic) == ("agrees", pytest.approx(0.19))
    rows[5] = ("dora", 16, "mcc", 0.4, 100_000)
    again = seen(Evidence(scores=scores(*rows)), "dora")
    assert again["§5.5, Figure 5, Table 15: DoRA (column) scores higher than LoRA at every rank"].verdict == "disagrees"
    none = seen(Evidence(scores=scores(("lora", 4, "mcc", 0.1, 9), ("dora", 8, "mcc", 0.1, 9))), "dora")
    assert (
        none["§5.1, Table 1 (LLaMA-7B): DoRA (column) scores higher than LoRA"].note
        == "missing: results of dora and lora of the same rank"
    )


def test_runs_that_were_scored_on_different_things_are_not_compared():
    mixed = scores(("lora", 8, "mcc", 0.1, 9), ("dora", 8, "vqa", 0.1, 9))
    outcome = seen(Evidence(scores=mixed), "dora")["§5.1, Table 1 (LLaMA-7B): DoRA (column) scores higher than LoRA"]
    assert (outcome.verdict, outcome.statistic) == ("unclear", None)
    assert "different things" in outcome.note


def test_doras_parameters_memory_and_granularity():
    table = runs(
        {"method": "lora", "trainable": 1000.0, "rank": 8},
        {"method": "dora", "trainable": 1005.0, "peak_megabytes": 80.0},
        {"method": "dora, detach_norm False", "peak_megabytes": 100.0},
        {"method": GRANULAR, "trainable": 300.0},
    )
    found = seen(Evidence(runs=table), "dora")
    sentence = "§5.2, Table 2 (5.96 %, 5.93 %): DoRA (column) trains a little more parameters than LoRA"
    assert (found[sentence].verdict, found[sentence].statistic) == ("agrees", pytest.approx(1.005))
    memory = "§4.3, Table 7 (VL-BART): Keeping the norm out of the gradient saves DoRA (column) memory"
    assert (found[memory].verdict, found[memory].statistic) == ("agrees", pytest.approx(0.8))
    granular = next(o for text, o in found.items() if "trains less than half of LoRA's" in text)
    assert (granular.verdict, granular.statistic) == ("agrees", pytest.approx(0.3))
    on_cpu = seen(Evidence(runs=table.assign(on_gpu=False)), "dora")[memory]
    assert (on_cpu.verdict, on_cpu.statistic) == ("unclear", None)
    assert "not measured on a GPU" in on_cpu.note


def regions(moved: int = 4) -> pd.DataFrame:
    rows = []
    for method, axis in (("sbora-fa", "columns"), ("sbora-fb", "rows")):
        for rank in (4, 8):
            row = {"method": method, "adapter_rank": rank, "out": 16, "in": 32, "moved_rows": 16, "moved_columns": 32}
            size = 32 if axis == "columns" else 16
            row |= {f"moved_{axis}": rank * moved // 4, "untouched_weights": 1 - rank * moved / 4 / size}
            rows.append(row)
    return pd.DataFrame(rows)


def sbora(found: Evidence) -> dict[str, Outcome]:
    return {text.partition(": ")[2]: outcome for text, outcome in seen(found, "sbora").items()}


def sbora_world() -> Evidence:
    table = runs(
        *(
            {"method": m, "rank": r, "seconds_per_epoch": s, "trainable": t, "peak_megabytes": s}
            for m, s, t in (("lora", 2.0, 200), ("dora", 3.0, 210), ("sbora-fa", 1.0, 100), ("sbora-fb", 1.0, 100))
            for r in (4, 8)
        )
    )
    values = {"lora": 0.5, "dora": 0.5, "sbora-fa": 0.6, "sbora-fb": 0.5, "lora-fa": 0.4, "oa": 0.4}
    rows = [(method, rank, "mcc", value, 4000) for method, value in values.items() for rank in (4, 8)]
    return Evidence(runs=table, scores=scores(*rows), regions=regions())


def test_sboras_claims_agree_and_disagree():
    world = sbora_world()
    found = sbora(world)
    quantized = {sentence: found.pop(sentence) for sentence in list(found) if sentence.startswith("QSBoRA")}
    assert len(quantized) == 7
    assert (
        quantized["QSBoRA-FA scores higher than QLoRA of the same rank"].note
        == "missing: a result of qsbora-fa and of qlora"
    )
    assert {outcome.verdict for outcome in found.values()} == {"agrees"}
    share = found["SBoRA-FA leaves most weights as they were, 1 − r/in of them"]
    assert share.statistic == pytest.approx(1 - 6 / 32)
    without = sbora(replace(world, runs=world.runs.assign(on_gpu=False)))
    assert {text for text, outcome in without.items() if outcome.verdict == "unclear"} == {
        *quantized,
        *(f"SBoRA-{variant} takes less memory than {o}" for variant in ("FA", "FB") for o in ("LoRA", "DoRA")),
    }
    moved = sbora(replace(world, regions=regions(moved=8)))
    assert moved["SBoRA-FA moves exactly r columns of a matrix"].verdict == "disagrees"
    assert moved["SBoRA-FB leaves most weights as they were, 1 − r/out of them"].verdict == "disagrees"
    slow = world.runs.copy()
    slow.loc[(slow["method"] == "sbora-fa") & (slow["rank"] == 4), "seconds_per_epoch"] = 2.2
    assert sbora(replace(world, runs=slow))["SBoRA-FA trains faster than LoRA"].verdict == "unclear"  # at one rank
    slow = slow[slow["rank"] == 4]
    assert sbora(replace(world, runs=slow))["SBoRA-FA trains faster than LoRA"].verdict == "disagrees"


def test_sbora_beside_dora_and_over_a_base_in_4_bits():
    equal = "SBoRA-FA scores at least as high as DoRA of the same rank, which has twice the parameters"
    assert sbora(sbora_world())[equal].claim.paper_number == 0.0
    lower = scores(*(("sbora-fa", r, "mcc", 0.3, 4000) for r in (4, 8)), ("dora", 4, "mcc", 0.5, 4000))
    assert sbora(Evidence(scores=lower))[equal].verdict == "disagrees"
    values = {("qlora", 4): 0.5, ("qsbora-fa", 4): 0.5, ("qsbora-fa", 8): 0.6, ("qsbora-fb", 4): 0.3}
    rows = [(method, rank, "mcc", value, 40_000) for (method, rank), value in values.items()]
    found = sbora(Evidence(scores=scores(*rows)))
    assert found["QSBoRA-FA scores about as high as QLoRA of the same rank"].verdict == "agrees"
    assert found["QSBoRA-FB scores about as high as QLoRA of the same rank"].verdict == "disagrees"
    assert found["QSBoRA-FA scores higher than QLoRA of half its rank"].statistic == pytest.approx(0.1)
    gain = found["QSBoRA-FA scores higher at a higher rank"]
    assert (gain.verdict, gain.statistic) == ("agrees", pytest.approx(0.1))
    assert gain.note.startswith("ranks 8 and 4")
    assert found["QSBoRA-FB scores higher at a higher rank"].note == "missing: results of qsbora-fb at two ranks"


def test_the_label_of_sboras_table_4():
    (claim,) = [c.claim for c in all_checks(Evidence(), ["sbora"]) if "SBoRA-FB of the same rank" in c.claim.sentence]
    assert (claim.source, claim.paper_number) == ("§5.2, Table 4 (LLaMA-7B, rank 32; .050 at 64)", 0.028)


def test_dvora_beside_lora_whatever_their_ranks():
    sentence = "§5.4, Table 5 (MT-Bench of 10, LLaMA-7B; .3 LLaMA2-7B): DVoRA scores as high as LoRA or higher"
    for score, verdict in ((0.5, "agrees"), (0.3, "disagrees")):
        rows = scores(("dvora", 256, "mcc", score, 100_000), ("lora", 8, "mcc", 0.5, 100_000))
        assert seen(Evidence(scores=rows), "dora")[sentence].verdict == verdict


def test_dual_loras_sweep_beside_hira():
    sentence = "Dual LoRA scores higher than HiRA of rank 2r at every r₁ : r₂"
    world = dual_world({1: 0.5, 4: 0.6, 7: 0.5})
    assert dual(world)[sentence].note == "missing: a run of hira"
    with_hira = pd.concat([world.scores, scores(("hira", 8, "mcc", 0.3, 4000))])
    found = dual(replace(world, scores=with_hira))[sentence]
    assert (found.verdict, found.statistic) == ("agrees", 1.0)


def dual_world(scored: dict[int, float], magnitude: int = 40, other: float = 0.3) -> Evidence:
    groups = {("lora", "update"): 8, ("dual-lora", "update"): 64, ("dual-lora", "magnitude"): magnitude}
    groups |= {("dual-lora", "direction"): 63}
    spectra = pd.DataFrame(
        [
            {"run": method, "method": method, "group": group, "module": f"{layer}.query", "layer": layer}
            | {"rank": rank, "full_rank": 64, "adapter_rank": 8 if method == "lora" else 4}
            | {"direction_rank": None if method == "lora" else 4}
            for (method, group), rank in groups.items()
            for layer in range(3)
        ]
    )
    rows = [("lora", 8, "mcc", other, 4000), ("dora", 8, "mcc", other, 4000)]
    rows += [("dual-lora", r, "mcc", score, 4000, 8 - r) for r, score in scored.items()]
    table = scores(*rows)
    results = table[["run", "method", "rank", "direction_rank"]].assign(
        trainable=64.0, share=0.1, seconds_per_epoch=1.0, peak_megabytes=1.0, on_gpu=True
    )
    return Evidence(runs=results, scores=table, spectra=spectra)


def dual(world: Evidence) -> dict[str, Outcome]:
    return {text.partition(": ")[2]: outcome for text, outcome in seen(world, "dual-lora").items()}


SWEEP = "Dual LoRA scores higher than DoRA (column) of rank 2r at every r₁ : r₂"


def test_dual_loras_claims_agree_and_disagree():
    found = dual(dual_world({1: 0.5, 4: 0.6, 7: 0.5}))
    decided = {text: outcome for text, outcome in found.items() if outcome.statistic is not None}
    assert len(decided) == 14
    assert {outcome.verdict for outcome in decided.values()} == {"agrees"}
    assert all(outcome.note.startswith("missing: ") for text, outcome in found.items() if text not in decided)
    assert found[SWEEP].statistic == 1.0
    ranks = found["The magnitude group has a much higher rank than the update of LoRA of rank 2r"]
    assert (ranks.statistic, ranks.ci_low) == (5.0, 5.0)
    assert "dual-lora of rank 4, lora of rank 8" in ranks.note
    mixed = dual(dual_world({1: 0.31, 4: 0.6, 7: 0.29}))[SWEEP]
    assert (mixed.verdict, mixed.statistic) == ("unclear", pytest.approx(2 / 3))
    assert "above at 2 of 3" in mixed.note
    assert "1 : 7: 0.01" in mixed.note
    assert dual(dual_world({1: 0.1, 4: 0.6}))[SWEEP].verdict == "disagrees"
    full = dual(dual_world({4: 0.6}, magnitude=64))
    assert full["The magnitude group has a lower rank than the whole"].verdict == "disagrees"


def test_ranks_of_runs_that_learned_nothing_are_unclear_but_for_what_an_equation_bounds():
    world = dual_world({4: 0.6})
    reasons = world.spectra["method"].map({"dual-lora": "best Matthews correlation 0, guessing has 0 ± 0.031"})
    found = dual(replace(world, spectra=world.spectra.assign(guessing=reasons)))
    note = "dual-lora learned nothing: best Matthews correlation 0, guessing has 0 ± 0.031"
    overall = found["The overall update is almost of full rank"]
    assert (overall.verdict, overall.note) == ("unclear", note)
    bounded = dual(replace(world, spectra=world.spectra.assign(guessing="it guesses")))
    assert bounded["LoRA's update has no higher rank than its r"].verdict == "agrees"


def test_dual_lora_is_compared_with_twice_its_rank():
    world = dual_world({4: 0.6})
    other = world.spectra.assign(adapter_rank=world.spectra["adapter_rank"].replace(8, 6))
    found = dual(replace(world, spectra=other, scores=world.scores.assign(rank=world.scores["rank"].replace(8, 6))))
    assert found["The overall update has a higher rank than that of LoRA of rank 2r"].note == (
        "missing: a run of lora of rank 8"
    )
    assert found["LoRA's update has no higher rank than its r"].verdict == "disagrees"  # 8, with an r of 6
    assert found["Dual LoRA scores higher on CoLA than LoRA of twice its rank"].statistic is None
    assert found["The overall update is almost of full rank"].verdict == "agrees"


def test_names_of_variants():
    assert method_name("dual-lora, sign xnor") == "Dual LoRA (sign xnor)"
    assert method_name("qlora") == "QLoRA"
    assert method_name("mine") == "mine"

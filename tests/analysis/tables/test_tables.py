"""Tables of singular values, directions, intruders, similarity and vectors, row by row against the definitions."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from deltaw.adapters import METHODS, NonFiniteError, OptionError, ShapeError, TargetError, create, inject
from deltaw.adapters.methods.registry import options_of
from deltaw.analysis import Trajectory
from deltaw.analysis.measures.chance import expected_angles, expected_similarity
from deltaw.analysis.measures.change import change
from deltaw.analysis.tables.amplification import amplification_table
from deltaw.analysis.tables.intruders import intruder_table
from deltaw.analysis.tables.similarity import similarity_table
from deltaw.analysis.tables.singular_values import singular_values
from deltaw.analysis.tables.subspaces import subspace_angles, subspace_overlap
from deltaw.analysis.tables.vectors import vector_changes
from deltaw.trainers import Recorder, every

NAMES = ["layers.0.query", "layers.0.value", "layers.1.query", "layers.1.value"]
STEPS = [0, 2, 4]
LABELS = ["run", "method", "module", "layer", "kind"]


def record(folder, method, *, seed=0, steps=5, interval=2, width=9, names=("query", "value"), corrupt=None):
    torch.manual_seed(7)
    layers = [nn.ModuleDict({name: nn.Linear(width, 7, dtype=torch.float64) for name in names}) for _ in range(2)]
    model = nn.ModuleDict({"layers": nn.ModuleList(layers)})
    options = {"rank": 2} if "rank" in options_of(method) else {}
    if method == "dual-lora":
        options["warmup_steps"] = 2
    context = {name: torch.eye(width) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    inject(model, create(method, **options), [f"*.{name}" for name in names], context=context, seed=seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-2)
    torch.manual_seed(seed)
    with Recorder(model, folder, when=every(interval), method=method) as recorder:
        for step in range(steps):
            recorder.step(step)
            x = torch.randn(5, width, dtype=torch.float64)
            sum(layer[name](x).square().sum() for layer in model["layers"] for name in layer).backward()
            optimizer.step()
            optimizer.zero_grad()
            if corrupt == step:
                with torch.no_grad():
                    parameters[0].view(-1)[0] = math.nan
    return Trajectory.open(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run of every method that the tests compare."""
    folder = tmp_path_factory.mktemp("runs")
    found = {method: record(folder / method, method) for method in ("ft", "lora", "bora", "sbora-fb")}
    return found | {"lora, another seed": record(folder / "other", "lora", seed=1)}


def weights(run, module, step):
    """W₀ and W' in float64."""
    return run.base(module).double(), run.weight(module, step, torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_singular_values_are_the_dense_ones(method, tmp_path):
    run = record(tmp_path / "run", method)
    frame = singular_values([run])
    assert list(frame.columns) == [*LABELS, "step", "index", "singular_value", "share", "tolerance"]
    assert (frame[frame.step == 0].singular_value <= frame[frame.step == 0].tolerance).all()
    ranks = run.spectra().set_index(["module", "step"])["rank"]
    for (module, step), rows in frame.groupby(["module", "step"]):
        base, after = weights(run, module, step)
        wanted = torch.linalg.svdvals(after - base)[: len(rows)]
        assert rows["index"].tolist() == list(range(1, len(rows) + 1))
        np.testing.assert_allclose(rows.singular_value, wanted, rtol=1e-6, atol=1e-14)
        assert (rows.singular_value > rows.tolerance).sum() == ranks[module, step]
        if step:
            np.testing.assert_allclose(rows.share, wanted**2 / (after - base).square().sum(), rtol=1e-6, atol=1e-14)
            assert rows.share.sum() == pytest.approx(1)
    assert set(frame.method) == {method}
    assert frame.layer.dtype == frame.step.dtype == "Int64"


def test_a_spectrum_says_its_route(runs):
    assert set(runs["lora"].spectra(steps="last").route) == {"factors"}
    assert set(runs["bora"].spectra(steps="last").route) == {"svd"}  # too small for the Gram matrix to pay


def test_only_the_measures_that_are_asked_for(runs, monkeypatch):
    monkeypatch.setattr("deltaw.analysis.measures.leading.LARGE", 4)
    monkeypatch.setattr("deltaw.analysis.measures.leading._BASIS", 1)
    for run in runs.values():
        full = run.spectra()
        few = run.spectra(measures=("stable_rank", "frobenius"))
        assert few.columns.tolist()[-3:] == ["stable_rank", "frobenius", "route"]
        np.testing.assert_allclose(few.frobenius, full.frobenius, rtol=1e-6)
        np.testing.assert_allclose(few.stable_rank, full.stable_rank, rtol=1e-6)
        assert (run.spectra(measures=["energy_rank_90"]).energy_rank_90 == full.energy_rank_90).all()
        pd.testing.assert_frame_equal(
            run.spectra(measures=["nuclear", "rank"]), full[run.spectra(measures=["nuclear", "rank"]).columns]
        )


@pytest.mark.parametrize("wrong", ["norm", ["rank", "norm"], [["rank"]], [], 3])
def test_an_unknown_measure_is_named(runs, wrong):
    with pytest.raises(OptionError, match=r"measures is .*choose of rank, full_rank"):
        runs["lora"].spectra(measures=wrong)


def test_singular_values_of_some(runs):
    frame = singular_values(list(runs.values()), steps="last", modules=["*.query"], top=1)
    assert len(frame) == 2 * len(runs)
    assert set(frame.step) == {4}
    first = singular_values([runs["lora"]], steps=[0])
    assert (first[["singular_value", "share"]] == 0).all(axis=None)
    assert len(first) == 2 * len(NAMES)  # from factors: r values, not 7
    last = singular_values([runs["lora"]], steps=[4], modules=["layers.0.query"], top=1)
    whole = singular_values([runs["lora"]], steps=[4], modules=["layers.0.query"])
    assert last.share[0] == whole.share[0] < 1
    with pytest.raises(OptionError, match="top is 0"):
        singular_values([runs["lora"]], top=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("one", "two"), [("lora", "lora, another seed"), ("ft", "lora"), ("bora", "ft")])
def test_overlap_and_angles_are_their_definitions(runs, one, two, side):
    first, second = runs[one], runs[two]
    frame = subspace_overlap(first, second, ranks=[1, 2], ranks_second=[1, 2, 3], side=side)
    head = ["run_first", "run_second", "step_first", "step_second", "module", "layer", "kind", "side"]
    assert list(frame.columns) == [*head, "i", "j", "overlap", "expected"]
    assert len(frame) == len(NAMES) * 6
    angles = subspace_angles(first, second, rank=2, side=side)
    assert list(angles.columns) == [*head, "index", "angle", "expected"]
    for module in NAMES:
        vectors = []
        for run in (first, second):
            base, after = weights(run, module, 4)
            u, _, vt = np.linalg.svd((after - base).numpy())
            vectors.append(u if side == "left" else vt.T)
        a, b = vectors
        for row in frame[frame.module == module].itertuples():
            phi = np.linalg.norm(a[:, : row.i].T @ b[:, : row.j]) ** 2 / min(row.i, row.j)
            if "lora" in two and row.j == 3:
                assert math.isnan(row.overlap)  # it has two directions
            else:
                assert row.overlap == pytest.approx(phi, abs=1e-7)
            assert row.expected == max(row.i, row.j) / len(a)
        cosines = np.linalg.svd(a[:, :2].T @ b[:, :2])[1]
        assert angles[angles.module == module].angle.tolist() == pytest.approx(np.arccos(cosines), abs=1e-6)
        assert angles[angles.module == module].expected.tolist() == list(expected_angles(2, 2, len(a)))
    assert set(frame.run_first) == {first.name}
    assert set(frame.run_second) == {second.name}
    assert set(frame.step_first) == set(frame.step_second) == {4}


def test_two_steps_of_one_run(runs):
    run = runs["lora"]
    frame = subspace_overlap(run, run, step_first=2, modules=["*.query"], ranks=[2])
    assert frame[["step_first", "step_second", "module"]].values.tolist() == [[2, 4, NAMES[0]], [2, 4, NAMES[2]]]
    assert frame.overlap.between(0.5, 1).all()
    same = subspace_overlap(run, run, ranks=[1, 2])
    np.testing.assert_allclose(same[same.i <= same.j].overlap, 1)
    assert subspace_angles(run, run).angle.max() < 1e-15
    frozen = runs["sbora-fb"]  # its left directions are the two rows that move, at every step
    rows = subspace_overlap(frozen, frozen, step_first=2, ranks=[2], side="left")
    np.testing.assert_allclose(rows.overlap, 1)


def test_an_update_of_zeros_has_no_directions(runs):
    run = runs["lora"]
    frame = subspace_overlap(run, run, step_first=0, ranks=[1, 2])
    assert len(frame) == len(NAMES) * 4
    assert frame.overlap.isna().all()
    assert subspace_angles(run, run, step_first=0).angle.isna().tolist() == [True] * len(NAMES)
    assert subspace_angles(run, run, step_first=0, rank=2).angle.isna().tolist() == [True] * 2 * len(NAMES)
    mixed = subspace_angles(run, runs["ft"], rank=3)
    assert mixed.angle.isna().tolist() == [False, False, True] * len(NAMES)
    assert (subspace_angles(run, runs["ft"]).groupby("module")["index"].max() == 2).all()
    none = amplification_table([run], ranks=[1, 2], steps=[0])
    assert none[["projected", "weight_norm", "amplification"]].isna().all(axis=None)
    assert (none.directions == 0).all()


def test_runs_without_enough_in_common(runs, tmp_path):
    run = runs["lora"]
    with pytest.raises(OptionError, match=r"no module in common.*layers\.0\.query.*layers\.0\.other"):
        subspace_overlap(run, record(tmp_path / "a", "lora", names=["other"]))
    partly = record(tmp_path / "b", "lora", names=["other", "value"])
    assert set(subspace_overlap(run, partly, ranks=[1]).module) == {"layers.0.value", "layers.1.value"}
    with pytest.raises(TargetError, match="query"):
        subspace_overlap(run, partly, modules=["*.query"])
    with pytest.raises(ShapeError, match=r"layers\.0\.query is \(7, 9\) in .* and \(7, 8\) in"):
        subspace_overlap(run, record(tmp_path / "c", "lora", width=8), ranks=[1])
    later = record(tmp_path / "d", "lora", steps=4, interval=3)
    assert set(similarity_table([run], other=later).step) == {0}
    assert set(similarity_table([run], other=later, steps="last").step_other) == {3}
    never = record(tmp_path / "e", "lora", steps=0)
    with pytest.raises(OptionError, match="no step in common"):
        similarity_table([run], other=never)
    with pytest.raises(OptionError, match="no step was recorded"):
        subspace_overlap(run, never)
    assert vector_changes([never]).empty
    assert singular_values([never]).empty


@pytest.mark.parametrize("method", ["ft", "lora", "bora"])
def test_amplification_is_its_definition(runs, method):
    run = runs[method]
    frame = amplification_table([run], ranks=[1, 2, 7], steps=[2, 4])
    names = ["weight_norm", "update_norm", "share", "projected", "projected_own", "projected_random", "amplification"]
    assert list(frame.columns) == [*LABELS, "step", "rank", "directions", *names]
    assert len(frame) == len(NAMES) * 2 * 3
    for row in frame.itertuples():
        base, after = weights(run, row.module, row.step)
        u, s, vt = np.linalg.svd((after - base).numpy(), full_matrices=False)
        if method == "lora" and row.rank == 7:
            assert row.directions == 2
            assert math.isnan(row.amplification)
            continue
        projected = np.linalg.norm(u[:, : row.rank].T @ base.numpy() @ vt[: row.rank].T)
        assert row.projected == pytest.approx(projected, rel=1e-6)
        assert row.amplification == pytest.approx(np.linalg.norm(s) / projected, rel=1e-6)
        assert row.share == pytest.approx((s[: row.rank] ** 2).sum() / (s**2).sum())
        own = torch.linalg.svdvals(base)[: row.rank]
        assert row.projected_own == pytest.approx(float(own.norm()))
        assert row.projected_random == pytest.approx(row.rank * float(base.norm()) / math.sqrt(63))


def test_intruders_are_their_definition(runs):
    frame = intruder_table(list(runs.values()), k=3, epsilon=0.97, steps=[0, 4])
    assert list(frame.columns) == [*LABELS, "step", "index", "singular_value", "similarity", "intruder"]
    assert len(frame) == len(runs) * len(NAMES) * 2 * 3
    by_name = {run.name: run for run in runs.values()}
    for row in frame.itertuples():
        u, v = (np.linalg.svd(w.numpy(), full_matrices=False) for w in weights(by_name[row.run], row.module, row.step))
        assert row.singular_value == pytest.approx(v[1][row.index - 1])
        assert row.similarity == pytest.approx(np.abs(v[0][:, row.index - 1] @ u[0]).max(), abs=1e-7)
        assert row.intruder == (row.similarity < 0.97)
    counts = frame.groupby(["run", "module", "step"])["intruder"].sum()
    assert (counts.xs(0, level="step") == 0).all()
    assert counts.xs(4, level="step").sum() > 0
    with pytest.raises(OptionError, match=r"layers\.0\.query, at step 4: k is 8; .* from 1 to 7"):
        intruder_table([runs["ft"]], k=8)


def cka(first, second):
    x, y = (w.numpy() - w.numpy().mean(0) for w in (first, second))
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_similarity_is_its_definition(runs):
    frame = similarity_table([runs["ft"], runs["bora"]])
    columns = [*LABELS, "step", "other", "step_other", "examples", "similarity", "dissimilarity", "expected"]
    assert list(frame.columns) == columns
    assert frame.expected.tolist() == [expected_similarity(*runs["ft"].shape(module)) for module in frame.module]
    assert len(frame) == 2 * len(NAMES) * len(STEPS)
    for row in frame.itertuples():
        base, after = weights(runs[row.run], row.module, row.step)
        assert row.similarity == pytest.approx(cka(after, base), abs=1e-12)
        assert row.dissimilarity == pytest.approx(1 - cka(after, base), abs=1e-12)
    assert (frame.other == "base").all()
    assert frame.step_other.isna().all()
    assert (frame[(frame.step == 0) & (frame.run == "ft")].dissimilarity == 0).all()
    turned = similarity_table([runs["ft"]], examples="column", steps="last")
    for row in turned.itertuples():
        base, after = weights(runs["ft"], row.module, 4)
        assert row.similarity == pytest.approx(cka(after.T, base.T), abs=1e-12)
    between = similarity_table([runs["ft"]], other=runs["bora"])
    for row in between.itertuples():
        first, second = (runs[name].weight(row.module, row.step, torch.float64) for name in ("ft", "bora"))
        assert row.similarity == pytest.approx(cka(first, second), abs=1e-12)
        assert row.step_other == row.step
    assert set(between.other) == {"bora"}


@pytest.mark.parametrize("pairs", ["consecutive", "initial", "base", [(0, 4)], [(None, 2), (2, 4)]])
@pytest.mark.parametrize("method", ["ft", "bora"])
def test_vectors_are_those_of_change(runs, method, pairs):
    run = runs[method]
    named = {
        "consecutive": list(pairwise(STEPS)),
        "initial": [(0, 2), (0, 4)],
        "base": [(None, step) for step in STEPS],
    }
    wanted = named[pairs] if isinstance(pairs, str) else pairs
    levels = [0.0, 0.1, 0.5, 1.0]
    spread = vector_changes([run], pairs, quantiles=levels)
    single = vector_changes([run], pairs, quantiles=None)
    tail = ["delta_m", "delta_d", "undefined"]
    assert list(spread.columns) == [*LABELS, "axis", "step_from", "step_to", "quantile", *tail]
    assert list(single.columns) == [*LABELS, "axis", "step_from", "step_to", "index", *tail]
    assert len(spread) == len(NAMES) * len(wanted) * 2 * len(levels)
    assert len(single) == len(NAMES) * len(wanted) * (7 + 9)
    keys = ["module", "axis", "step_from", "step_to"]
    groups = dict(iter(single.groupby(keys, dropna=False)))
    for key, rows in spread.groupby(keys, dropna=False):
        module, axis, step_from, step_to = key
        start = None if pd.isna(step_from) else int(step_from)
        found = change(run.weight(module, start, torch.float64), run.weight(module, int(step_to), torch.float64), axis)
        # W' of an adapter is not built for it (`measures.built`): the same but for the order of the sums.
        digits = {"rtol": 0.0} if method == "ft" else {"rtol": 1e-9, "atol": 1e-15}
        np.testing.assert_allclose(groups[key].delta_m, found.magnitude, **digits)
        np.testing.assert_allclose(groups[key].delta_d, found.direction, **digits)
        assert groups[key]["index"].tolist() == list(range(len(found.magnitude)))
        np.testing.assert_allclose(rows.delta_m, np.quantile(found.magnitude, levels), atol=1e-15)
        np.testing.assert_allclose(rows.delta_d, np.quantile(found.direction, levels), atol=1e-15)
        assert rows.delta_m.is_monotonic_increasing
    means = single.groupby(keys, dropna=False)[["delta_m", "delta_d"]].mean()
    table = run.changes(pairs).groupby(keys, dropna=False)[["delta_m", "delta_d"]].mean()
    pd.testing.assert_frame_equal(means, table, check_dtype=False)


def test_vectors_without_direction_are_counted(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight[1] = 0
    with Recorder(model, tmp_path / "run", modules=["0"]) as recorder:
        recorder.step(0)
        with torch.no_grad():
            model[0].weight += 1
        recorder.step(1)
        with torch.no_grad():
            model[0].weight.zero_()
        recorder.step(2)
    run = Trajectory.open(tmp_path / "run")
    rows = vector_changes([run], [(0, 1)], axes=["row"], quantiles=[0.5])
    found = change(run.weight("0", 0), run.weight("0", 1), "row")
    assert rows.undefined.tolist() == [1]
    assert rows.delta_d[0] == float(found.direction[[0, 2]].mean())
    nothing = vector_changes([run], [(1, 2)])
    assert nothing.delta_d.isna().all()
    assert nothing.delta_m.notna().all()
    assert nothing.layer.tolist() == [0] * len(nothing)
    single = vector_changes([run], [(0, 1)], axes=["row"], quantiles=None)
    assert single.delta_d.isna().tolist() == [False, True, False]


def test_wrong_calls_are_named(runs):
    run = runs["lora"]
    for call in (singular_values, amplification_table, intruder_table, similarity_table, vector_changes):
        with pytest.raises(OptionError, match="no run is given"):
            call([])
        with pytest.raises(TargetError, match="nothing"):
            call([run], modules=["nothing"])
    for call in (singular_values, amplification_table, intruder_table, similarity_table):
        with pytest.raises(OptionError, match="step 3"):
            call([run], steps=[3])
        with pytest.raises(OptionError, match="steps is 'first'"):
            call([run], steps="first")
    for ranks in ([0], [8], [], [1.5]):
        with pytest.raises(OptionError, match=r"ranks are .*layers\.0\.query.* from 1 to 7"):
            subspace_overlap(run, run, ranks=ranks)
        with pytest.raises(OptionError, match="ranks are"):
            amplification_table([run], ranks=ranks)
    with pytest.raises(OptionError, match="ranks are"):
        subspace_angles(run, run, rank=8)
    with pytest.raises(OptionError, match="side is 'up'"):
        subspace_overlap(run, run, side="up")
    with pytest.raises(OptionError, match="step 5"):
        subspace_overlap(run, run, step_second=5)
    with pytest.raises(OptionError, match="sideways"):
        vector_changes([run], "sideways")
    for quantiles in ([], [1.1], [math.nan]):
        with pytest.raises(OptionError, match="quantiles are"):
            vector_changes([run], quantiles=quantiles)
    with pytest.raises(OptionError, match="examples is"):
        similarity_table([run], examples="diagonal")
    with pytest.raises(OptionError, match="epsilon is"):
        intruder_table([run], k=3, epsilon=2)


def test_nan_names_run_module_and_step(tmp_path):
    run = record(tmp_path / "run", "ft", corrupt=2)
    good = record(tmp_path / "good", "ft")
    where = r"run: layers\.0\.query, .*step 4"
    for call in (singular_values, amplification_table, similarity_table, vector_changes):
        with pytest.raises(NonFiniteError, match=where):
            call([run])
    with pytest.raises(NonFiniteError, match=where):
        intruder_table([run], k=2)
    with pytest.raises(NonFiniteError, match=where):
        subspace_overlap(good, run, ranks=[1])
    with pytest.raises(NonFiniteError, match=r"good: layers\.0\.query, at step 4 against .*run at step 4: second"):
        similarity_table([good], other=run)

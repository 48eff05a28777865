"""The trajectory's tables against the definitions, from runs recorded here."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from deltaw.adapters import METHODS, NonFiniteError, OptionError, TargetError, create, inject
from deltaw.adapters.methods.registry import options_of
from deltaw.analysis import Trajectory, open_runs, spectrum, table
from deltaw.analysis.names import kind_of, layer_of
from deltaw.trainers import Recorder, every

NAMES = ["layers.0.query", "layers.0.value", "layers.1.query", "layers.1.value"]
STEPS = [0, 2, 4, 6]


def record(folder, method, steps=7, dtype=torch.float32, corrupt=None):
    torch.manual_seed(0)
    layers = [nn.ModuleDict({"query": nn.Linear(9, 7), "value": nn.Linear(9, 7)}) for _ in range(2)]
    model = nn.ModuleDict({"layers": nn.ModuleList(layers)}).to(dtype)
    options = {"rank": 2} if "rank" in options_of(method) else {}
    if method == "dual-lora":
        options["warmup_steps"] = 3
    if method == "adalora":
        options["alpha"] = 50.0  # else six steps give an update that is hardly above the rounding of W'
    targets = ["*.query", "*.value"]
    context = {f"layers.{i}.{kind}": torch.eye(9) for i in range(2) for kind in ("query", "value")}
    inject(model, create(method, **options), targets, context=context)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-2)
    with Recorder(model, folder, when=every(2), method=method) as recorder:
        for step in range(steps):
            recorder.step(step)
            x = torch.randn(5, 9, dtype=dtype)
            sum(layer[k](x).square().sum() for layer in model["layers"] for k in layer).backward()
            optimizer.step()
            optimizer.zero_grad()
            if corrupt == step:
                with torch.no_grad():
                    parameters[0].view(-1)[0] = math.nan
    return Trajectory.open(folder)


def defined(a, b, axis):
    """ΔM and ΔD from their definitions, in extended precision."""
    a, b = (t.double().numpy().astype(np.longdouble) for t in (a, b))
    dim = 1 if axis == "row" else 0
    na, nb = np.sqrt((a * a).sum(dim)), np.sqrt((b * b).sum(dim))
    cos = (a * b).sum(dim) / (na * nb)
    return float(np.abs(nb - na).mean()), float((1 - cos).mean())


@pytest.mark.parametrize("method", METHODS)
def test_changes_are_the_definitions(method, tmp_path):
    run = record(tmp_path / "run", method, dtype=torch.float64)
    wanted = {
        "consecutive": list(pairwise(STEPS)),
        "initial": [(0, step) for step in STEPS[1:]],
        "base": [(None, step) for step in STEPS],
    }
    for pairs, steps in wanted.items():
        frame = run.changes(pairs)
        assert len(frame) == len(NAMES) * len(steps) * 2
        assert list(frame.columns[:10]) == [
            "run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d",
        ]  # fmt: skip
        for row in frame.itertuples():
            before = run.weight(row.module, None if pairs == "base" else int(row.step_from))
            after = run.weight(row.module, int(row.step_to))
            dm, dd = defined(before, after, row.axis)
            assert math.isclose(row.delta_m, dm, rel_tol=1e-5, abs_tol=1e-15)
            assert math.isclose(row.delta_d, dd, rel_tol=1e-4, abs_tol=1e-15)
    frame = run.changes([(0, 6), (2, 4)], axes=["row"], modules=["layers.1.*"])
    assert len(frame) == 4
    assert set(frame.axis) == {"row"}
    assert set(frame.method) == {method}


@pytest.mark.parametrize("method", METHODS)
def test_spectra(method, tmp_path):
    run = record(tmp_path / "run", method)
    frame = run.spectra()
    assert len(frame) == len(NAMES) * len(STEPS)
    first, last = frame[frame.step == 0], frame[frame.step == 6]
    assert (first["rank"] == 0).all()
    for row in last.itertuples():
        update = run.weight(row.module, 6, torch.float64) - run.base(row.module).double()
        values = torch.linalg.svdvals(update)
        assert row.full_rank == 7
        assert math.isclose(row.spectral, values[0], rel_tol=1e-6)
        assert math.isclose(row.frobenius, update.norm(), rel_tol=1e-6)
        assert math.isclose(row.stable_rank, (values.norm() / values[0]) ** 2, rel_tol=1e-6)
        assert row.rank == int((values > row.tolerance).sum())
    if method in ("lora", "rslora"):
        assert set(last["rank"]) == {2}
    if method == "sbora-fa":
        assert set(last.zero_columns) == {7 / 9}
    if method == "sbora-fb":
        assert set(last.zero_rows) == {5 / 7}


def test_dual_lora_groups(tmp_path):
    run = record(tmp_path / "run", "dual-lora")
    frame = run.spectra([6], groups=True)
    assert len(frame) == 3 * len(NAMES)
    assert set(frame.group) == {"update", "magnitude", "direction"}
    method, state = run.method_of(NAMES[0]), run.state(NAMES[0], 6)
    W_m = torch.relu(state["lora_B"].double() @ state["lora_A"].double())
    W_d = torch.where(state["lora_D"].double() @ state["lora_C"].double() > 0, 1.0, -1.0)
    row = frame[(frame.module == NAMES[0])].set_index("group")
    assert math.isclose(row.frobenius["magnitude"], W_m.norm(), rel_tol=1e-6)
    assert math.isclose(row.frobenius["direction"], W_d.norm(), rel_tol=1e-6)
    torch.testing.assert_close(run.update(NAMES[0], 6), method.scaling * W_m * W_d)


def test_factors_and_update(tmp_path):
    run = record(tmp_path / "run", "sbora-fb")
    U, V = run.factors(NAMES[0], 4)
    torch.testing.assert_close(U @ V, run.update(NAMES[0], 4, torch.float32))
    torch.testing.assert_close(run.base(NAMES[0]) + U @ V, run.weight(NAMES[0], 4))
    assert record(tmp_path / "other", "bora").factors(NAMES[0], 4) is None


@pytest.mark.parametrize("method", ["lora", "rslora", "lora-fa", "pissa", "sbora-fa", "sbora-fb"])
def test_the_rank_table_of_factors_leaves_the_base_alone(method, tmp_path, monkeypatch):
    run = record(tmp_path / "run", method)
    wanted = [spectrum(factors=run.factors(name, step, torch.float64)) for name in NAMES for step in STEPS]

    def refused(module):
        raise AssertionError(module)

    monkeypatch.setattr(run.source, "base", refused)
    frame = run.spectra(cache=False)
    assert set(frame.route) == {"factors"}
    assert frame["rank"].tolist() == [found.rank for found in wanted]
    for name in ("nuclear", "frobenius", "effective_rank", "tolerance", "zero_rows", "zero_columns"):
        assert frame[name].tolist() == pytest.approx([getattr(found, name) for found in wanted], rel=1e-9), name
    values = table([run], "singular_values", cache=False).groupby(["module", "step"], sort=False).singular_value
    assert values.max().tolist() == pytest.approx([found.spectral for found in wanted], rel=1e-9)


def test_nan_names_module_and_step(tmp_path):
    run = record(tmp_path / "run", "ft", corrupt=4)
    with pytest.raises(NonFiniteError, match=r"layers\.0\.query.*step 6"):
        run.changes()
    with pytest.raises(NonFiniteError, match=r"layers\.0\.query.*step 6"):
        run.spectra()
    frame = run.changes(allow_nonfinite=True, modules=["layers.0.query"])
    assert len(frame) == 6


def test_what_is_not_there_is_named(tmp_path):
    run = record(tmp_path / "run", "lora")
    with pytest.raises(OptionError, match=r"step 3.*\[0, 2, 4\]"):
        run.weight(NAMES[0], 3)
    with pytest.raises(OptionError, match=r"layers\.7"):
        run.weight("layers.7", 2)
    with pytest.raises(TargetError, match="nothing"):
        run.changes(modules=["nothing"])
    with pytest.raises(OptionError, match="consecutive"):
        run.changes("sideways")
    with pytest.raises(ValueError, match="axis"):
        run.changes(axes=["diagonal"])


def test_several_runs(tmp_path):
    for path in ("a/run", "b/run"):
        record(tmp_path / path, "lora", steps=3)
    runs = open_runs([tmp_path / "a/run", tmp_path / "b/run"])
    assert [run.name for run in runs] == ["a/run", "b/run"]
    assert set(table(runs, "initial").run) == {"a/run", "b/run"}
    assert set(table(runs, "spectra", steps="last").step) == {2}
    with pytest.raises(OptionError, match="twice"):
        open_runs([tmp_path / "a/run", tmp_path / "a/../a/run"])
    with pytest.raises(OptionError, match="no run"):
        open_runs([])


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("roberta.encoder.layer.11.attention.self.query", 11, "query"),
        ("roberta.encoder.layer.0.attention.output.dense", 0, "output"),
        ("roberta.encoder.layer.0.output.dense", 0, "down"),
        ("roberta.encoder.layer.0.intermediate.dense", 0, "up"),
        ("encoder.layer.3.attention.attn.q", 3, "query"),
        ("model.layers.31.self_attn.v_proj", 31, "value"),
        ("model.layers.31.mlp.gate_proj", 31, "gate"),
        ("transformer.h.5.attn.c_attn", 5, "qkv"),
        ("transformer.h.5.mlp.c_proj", 5, "down"),
        ("model.decoder.layers.2.encoder_attn.k_proj", 2, "key"),
        ("encoder.block.4.layer.0.SelfAttention.q", 4, "query"),
        ("classifier", None, "classifier"),
    ],
)
def test_names(name, layer, kind):
    assert (layer_of(name), kind_of(name)) == (layer, kind)


@pytest.mark.parametrize("method", ["dora", "dora-row", "bora", "dvora", "magnitude"])
def test_nothing_has_moved_at_the_start(method, tmp_path):
    """The starting magnitudes are right to the last digit, so that no update is seen where there is none."""
    torch.manual_seed(0)
    model = inject(nn.Sequential(nn.Linear(384, 384)), create(method), targets=["0"])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
    assert Trajectory.open(tmp_path / "run").spectra()["rank"].item() == 0

"""The table of the geometry against its pure functions, from factors and dense, for every way of working."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters import METHODS as KNOWN
from deltaw.adapters import inject
from deltaw.adapters.errors import NonFiniteError, OptionError
from deltaw.analysis import Trajectory
from deltaw.analysis.measures.drift import spectral_drift
from deltaw.analysis.measures.off_principal_share import off_principal
from deltaw.analysis.measures.principal import by_svd
from deltaw.analysis.measures.principal_rotation import rotation
from deltaw.analysis.measures.random_update import expected_rotation, random_rotation
from deltaw.analysis.measures.visible import PATH_NOT_TAKEN, visible_share
from deltaw.analysis.tables.geometry import geometry_table
from deltaw.trainers import Recorder

from .measured_runs import TWO, recorded

METHODS = ["ft", "lora", "bora", "dual-lora"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: Trajectory.open(recorded(folder / name, name, steps=3)) for name in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_every_number_is_that_of_its_measure(runs, method):
    run = runs[method]
    frame = run.geometry([2], k=3, visible=("bfloat16", "float32", "path-not-taken"))
    assert list(frame["module"]) == run.modules
    assert set(frame["k"]) == {3}
    for row in frame.to_dict("records"):
        before, after = (run.weight(row["module"], step, torch.float64) for step in (None, 2))
        rows, columns = before.shape
        turned = rotation(before, after, 3)
        sigma = torch.linalg.svdvals(before)
        want = {
            "rotation_left": turned.left,
            "rotation_right": turned.right,
            "rotation_expected": min(expected_rotation(3, rows), expected_rotation(3, columns)),
            "rotation_random": random_rotation(sigma.numpy(), rows, columns, 3, float((after - before).norm())),
            "block_change": turned.block_change,
            "gap": float((sigma[2] - sigma[3]) / sigma[2]),
            "drift": float(spectral_drift(before, after)),
            "off_principal": off_principal(before, after, 3),
            "off_principal_left": off_principal(before, after, 3, sides="left"),
            "off_principal_right": off_principal(before, after, 3, sides="right"),
            "off_principal_expected": 1 - 9 / (rows * columns),
            "off_principal_left_expected": 1 - 3 / rows,
            "off_principal_right_expected": 1 - 3 / columns,
            "visible_bfloat16": visible_share(before, after),
            "visible_float32": visible_share(before, after, dtype=torch.float32),
            "visible_path_not_taken": visible_share(before, after, tolerance=PATH_NOT_TAKEN),
        }
        for name, number in want.items():
            assert row[name] == pytest.approx(number, rel=1e-9, nan_ok=True), name


def test_nothing_has_moved_at_the_first_step(runs):
    first = runs["lora"].geometry([0], k=2)
    for name in ("rotation_left", "rotation_right", "rotation_random", "drift", "visible_bfloat16"):
        assert set(first[name]) == {0.0}
    assert first["off_principal"].isna().all()  # no update lies nowhere


def test_other_processes_give_the_same_bits(runs):
    here, there = (geometry_table([runs["lora"]], k=2, **options) for options in ({}, {"work": TWO}))
    assert here.equals(there)


def test_only_what_is_asked_for(runs, monkeypatch):
    for name in ("rotation", "spectral_drift"):
        monkeypatch.setattr(f"deltaw.analysis.tables.geometry.{name}", None)
    frame = runs["lora"].geometry("last", k=2, measures=("visible", "off_principal"), visible="float16")
    assert list(frame.columns[7:]) == [
        "off_principal", "off_principal_expected", "off_principal_left", "off_principal_left_expected",
        "off_principal_right", "off_principal_right_expected", "visible_float16",
    ]  # fmt: skip


def test_a_matrix_with_fewer_directions_has_all_of_them(runs):
    frame = runs["ft"].geometry("last", k=20)
    assert dict(zip(frame["module"], frame["k"], strict=True)) == {"0": 16, "1": 16, "2": 20, "3": 16}
    whole = frame.set_index("module").loc["0"]  # (16, 24): the left space is whole
    assert whole["rotation_left"] == 0.0
    assert whole["rotation_right"] > 0
    assert whole["rotation_expected"] == expected_rotation(16, 24)


def test_directions_by_energy(runs):
    frame = runs["ft"].geometry("last", k=0.5)
    for module, k in zip(frame["module"], frame["k"], strict=True):
        energy = torch.linalg.svdvals(runs["ft"].base(module).double()).square().cumsum(0)
        assert k == int((energy < 0.5 * energy[-1]).sum()) + 1


def test_equal_singular_values_give_no_number(tmp_path):
    draw = torch.Generator().manual_seed(0)
    for name, weight in (("before", torch.eye(6)), ("after", torch.eye(6) + torch.randn(6, 6, generator=draw) / 99)):
        save_file({"layers.0.query.weight": weight}, tmp_path / f"{name}.safetensors")
    run = Trajectory.from_pair(tmp_path / "before.safetensors", tmp_path / "after.safetensors")
    row = run.geometry([1], k=2).iloc[0]
    assert row["gap"] == 0
    for name in ("rotation_left", "rotation_right", "rotation_random", "off_principal"):
        assert np.isnan(row[name])
    assert row["drift"] > 0


def test_wrong_calls_are_named(runs, tmp_path):
    run = runs["lora"]
    for options, text in (
        ({"k": 0}, "k is 0"),
        ({"k": 1.5}, "k is 1.5"),
        ({"measures": ("turn",)}, r"measures is \('turn',\); choose of rotation, drift"),
        ({"visible": "int8"}, "visible is 'int8'; choose of bfloat16"),
        ({"steps": [99]}, "step 99"),
    ):
        with pytest.raises(OptionError, match=text):
            run.geometry(**options)
    save_file({"layers.0.query.weight": torch.eye(3)}, tmp_path / "before.safetensors")
    save_file({"layers.0.query.weight": torch.eye(3) * math.nan}, tmp_path / "after.safetensors")
    broken = Trajectory.from_pair(tmp_path / "before.safetensors", tmp_path / "after.safetensors")
    with pytest.raises(NonFiniteError, match=r"layers\.0\.query, at step 1"):
        broken.geometry(k=1)


@pytest.mark.parametrize("method", ["lora", "bora", "ft"])
def test_large_matrices_turn_by_products_alone(tmp_path, monkeypatch, method):
    draw = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(780, 784))
    with torch.no_grad():  # singular values that fall off, as those of trained weights do
        u, v = (torch.linalg.qr(torch.randn(n, 780, generator=draw)).Q for n in (784, 780))
        net[0].weight.copy_(u / torch.arange(1, 781) @ v.T)
    inject(net, KNOWN[method](**({} if method == "ft" else {"rank": 4})), targets=["0"])
    with Recorder(net, tmp_path / "run") as recorder:
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape, generator=draw) * 1e-4
        recorder.step(1)
    run = Trajectory.open(tmp_path / "run")
    before, after = (run.weight("0", step, torch.float64) for step in (None, 1))
    with monkeypatch.context() as patched:
        if method != "ft":  # W' is not built
            patched.setattr(type(run), "weight", None)
        row = run.geometry([1], k=4, measures=("rotation", "off_principal"), cache=False).iloc[0]
    assert row["route"] == "krylov"
    slow = [by_svd(matrix, lambda _: 4) for matrix in (before, after)]
    for name in ("left", "right"):
        one, other = (getattr(side, name) for side in slow)
        sine = float(torch.linalg.matrix_norm(other - one @ (one.T @ other), 2))
        assert row[f"rotation_{name}"] == pytest.approx(math.degrees(math.asin(sine)), rel=2e-6)
    assert row["off_principal"] == pytest.approx(off_principal(before, after, 4), rel=1e-7)

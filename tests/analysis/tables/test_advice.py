"""Ranks for modules: from factors, from DoRA's product, from whole models; floors, sizes and budgets."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import OptionError, adapted, create, inject
from deltaw.analysis import Trajectory
from deltaw.trainers import Recorder

SHAPES = {"query": (12, 16), "value": (16, 16), "dense": (24, 16)}


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(columns, rows) for name, (rows, columns) in SHAPES.items()}).to(dtype)


def record(folder, method="lora", strengths=(1.0, 1.0, 1.0), **options):
    """A run of one step whose B A have these strengths and falling singular values."""
    net = inject(model(), create(method, **{"rank": 4, "alpha": 8} | options), targets=["*"], seed=0)
    with torch.no_grad():
        for layer, strength in zip(adapted(net).values(), strengths, strict=True):
            torch.manual_seed(1)
            layer.tensor("lora_B").copy_(strength * torch.randn(layer.out_features, 4) * torch.logspace(0, -1.5, 4))
    with Recorder(net, folder) as recorder:
        recorder.step(3)
    return Trajectory.open(folder)


def product(run, module):
    state, method = run.state(module, 3), run.method_of(module)
    return method.scaling * state["lora_B"].double() @ state["lora_A"].double()


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "bora"])
def test_the_ranks_are_those_of_the_product(tmp_path, method):
    run = record(tmp_path / "run", method)
    table = run.advice(at=0.95)
    assert list(table["module"]) == list(SHAPES)
    for _, row in table.iterrows():
        values = torch.linalg.svdvals(product(run, row["module"])).numpy()
        energy = np.cumsum(values**2) / np.sum(values**2)
        k = int(np.argmax(energy >= 0.95)) + 1
        assert (row["rank"], row["trained"], row["noise_rank"]) == (k, 4, 4)
        assert row["kept"] == pytest.approx(energy[k - 1])
        assert row["norm"] == pytest.approx(np.sqrt(np.sum(values**2)))
        assert row["relative"] == pytest.approx(row["norm"] / float(run.base(row["module"]).double().norm()))
        assert row["parameters"] == k * sum(SHAPES[row["module"]])
        assert row["of"] == ("update" if method in ("lora", "rslora") else "product")
        root = math.sqrt(k) if method == "rslora" else k
        assert row["alpha"] == pytest.approx(run.method_of(row["module"]).scaling * root)  # the scale stays


def test_a_module_that_hardly_moved(tmp_path):
    run = record(tmp_path / "run", strengths=(1.0, 1.0, 0.001))
    table = run.advice().set_index("module")
    assert table["hardly"].to_dict() == {"query": False, "value": False, "dense": True}
    assert table.loc["dense", "rank"] >= 1
    dropped = run.advice(drop=True).set_index("module")
    assert (dropped.loc["dense", "rank"], dropped.loc["dense", "kept"]) == (0, 0.0)
    assert not run.advice(hardly=0.0)["hardly"].any()


def test_a_module_that_did_not_move_at_all(tmp_path):
    table = record(tmp_path / "run", strengths=(1.0, 0.0, 1.0)).advice().set_index("module")
    row = table.loc["value"]
    assert row["hardly"]
    assert (row["rank"], row["noise_rank"], row["kept"], row["norm"]) == (1, 0, 1.0, 0.0)


def test_budgets(tmp_path):
    run = record(tmp_path / "run", strengths=(1.0, 0.3, 2.0))
    now = run.advice()["parameters_now"].sum()
    same = run.advice(parameters="same")
    assert same["parameters"].sum() <= now
    assert same["parameters"].sum() > now - max(map(sum, SHAPES.values()))
    assert "need" in same.attrs["rule"]
    half = run.advice(parameters=int(now) // 2)
    assert half["parameters"].sum() <= now // 2
    assert "energy" in half.attrs["rule"]
    together, apart = run.advice(together=True, at=0.97), run.advice(at=0.97)
    assert together["parameters"].sum() <= apart["parameters"].sum()
    for table in (together, apart):
        energy = table["norm"] ** 2
        assert (table["kept"] * energy).sum() >= 0.97 * energy.sum() * (1 - 1e-9)
    assert run.advice(rule="noise", most=2)["rank"].tolist() == [2, 2, 2]
    assert run.advice(rule="stable", least=3)["rank"].min() == 3


def test_whole_models_and_their_noise_floor(tmp_path):
    """A difference of rank 3 merged into bfloat16 has full rank; above the floor it has 3."""
    torch.manual_seed(0)
    base = torch.randn(64, 48)
    change = torch.randn(64, 3) @ torch.randn(3, 48)
    before, after = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    save_file({"layer.query.weight": base.bfloat16()}, before)
    save_file({"layer.query.weight": (base.bfloat16() + change).bfloat16()}, after)
    run = Trajectory.from_pair(before, after)
    (row,) = run.advice(rule="noise").to_dict("records")
    assert row["rank"] == row["noise_rank"] == 3
    assert (row["alpha"], row["scaling"]) == (3, 1.0)
    assert pd.isna(row["parameters_now"])
    update = run.update("layer.query", 1)
    assert torch.linalg.matrix_rank(update) == 48
    assert run.advice(scaling=2.0)["alpha"].item() == 2 * run.advice()["rank"].item()
    with pytest.raises(OptionError, match="no adapter to count"):
        run.advice(parameters="same")


def test_the_rounding_of_stored_factors_is_no_rank(tmp_path):
    """Columns of B that depend on each other no longer do in bfloat16; what that adds stands below the floor."""
    torch.manual_seed(0)
    exact = torch.randn(128, 4) @ torch.randn(4, 8)
    A = torch.randn(8, 96)
    prefix = "base_model.model.query."
    save_file(
        {f"{prefix}lora_A.weight": A.bfloat16(), f"{prefix}lora_B.weight": exact.bfloat16()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16}')
    (row,) = Trajectory.open(tmp_path).advice(rule="noise").to_dict("records")
    assert row["trained"] == 8
    assert row["rank"] == 4
    rounding = 2 * (exact.bfloat16().double() @ A.bfloat16().double() - exact.double() @ A.double()).norm()
    assert 0.3 * row["rounding"] < float(rounding) < 1.2 * row["rounding"]
    assert np.isnan(row["relative"])  # no W₀


def test_parts_of_a_fused_matrix_are_no_modules(tmp_path):
    prefix = "base_model.model.h.0.attn.c_attn."
    save_file(
        {f"{prefix}lora_A.weight": torch.randn(2, 16), f"{prefix}lora_B.weight": torch.randn(48, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    with pytest.raises(OptionError, match="split=False"):
        Trajectory.open(tmp_path).advice()
    assert Trajectory.open(tmp_path, split=False).advice()["module"].tolist() == ["h.0.attn.c_attn"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "mine"}, "rule is 'mine'; choose one of energy"),
        ({"at": 2.0}, "at is 2.0"),
        ({"rule": "stable", "together": True}, "together goes with"),
        ({"parameters": "some"}, "'same' or a whole number"),
        ({"parameters": 10}, "takes 100"),
        ({"spread": "need"}, "no budget is given"),
        ({"hardly": 1.0}, "hardly is 1.0"),
        ({"scaling": 0.0}, "scaling is 0.0"),
        ({"step": 7}, "7"),
    ],
    ids=str,
)
def test_a_wrong_call_says_so(tmp_path, options, message):
    run = record(tmp_path / "run")
    with pytest.raises(OptionError, match=message):
        run.advice(**options)


def test_other_processes_and_kept_tables_change_nothing(tmp_path):
    run = record(tmp_path / "run")
    first = run.advice(cache=False)
    for options in ({"cache": True}, {"cache": True}, {"jobs": 2, "cache": False}):
        assert run.advice(**options).equals(first)

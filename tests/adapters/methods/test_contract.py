"""One suite of laws that every method keeps: the definition, and everything that is faster than it."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.adapters import (
    METHODS,
    OptionError,
    ShapeError,
    adapted,
    base_weight,
    create,
    effective_weight,
    inject,
    load_adapters,
    merge,
    save_adapters,
)
from deltaw.adapters.layer import AdaptedLayer

OUT, IN, RANK = 11, 7, 3
INJECTED = [name for name in METHODS if create(name).injects]
RANKED = [name for name in INJECTED if name not in ("magnitude", "oft")]
# Every method, and every option that changes its arithmetic.
CASES: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in INJECTED},
    "lora alpha": ("lora", {"alpha": 5.0}),
    "rslora alpha": ("rslora", {"alpha": 5.0}),
    "dora full gradient": ("dora", {"detach_norm": False, "alpha": 5.0}),
    "dora-row full gradient": ("dora-row", {"detach_norm": False, "alpha": 5.0}),
    "bora full gradient": ("bora", {"detach_norm": False, "alpha": 5.0}),
    "sbora-fa alpha": ("sbora-fa", {"alpha": 5.0}),
    "sbora-fb alpha": ("sbora-fb", {"alpha": 5.0}),
    "dual-lora no ramp": ("dual-lora", {"warmup_steps": 0, "init_std": 0.3}),
    "dual-lora abs": ("dual-lora", {"activation": "abs", "init_std": 0.3}),
    "dual-lora sigmoid": ("dual-lora", {"activation": "sigmoid", "init_std": 0.3}),
    "dual-lora no relu": ("dual-lora", {"activation": "none", "init_std": 0.3}),
    "dual-lora no sign": ("dual-lora", {"sign": "none", "init_std": 0.3}),
    "dual-lora fixed": ("dual-lora", {"sign": "fixed", "init_std": 0.3}),
    "dual-lora xnor": ("dual-lora", {"sign": "xnor", "init_std": 0.3}),
    "dual-lora dorefa": ("dual-lora", {"sign": "dorefa", "init_std": 0.3, "alpha": 5.0}),
    "dual-lora two ranks": ("dual-lora", {"direction_rank": 5, "alpha": 5.0}),
    "oa task 1": ("oa", {"task": 1}),
    "pissa alpha": ("pissa", {"alpha": 5.0}),
    "pissa fast": ("pissa", {"iterations": 4}),
    "corda kpm": ("corda", {"mode": "kpm", "alpha": 5.0}),
    "delta-lora from step 20": ("delta-lora", {"start_step": 20, "alpha": 5.0}),
    "delta-lora before step 40": ("delta-lora", {"start_step": 40}),
    "vera alpha": ("vera", {"alpha": 5.0}),
    "dvora row": ("dvora", {"axis": "row"}),
    "dvora full gradient": ("dvora", {"detach_norm": False, "alpha": 5.0}),
    "dvora row full gradient": ("dvora", {"axis": "row", "detach_norm": False}),
    "magnitude row": ("magnitude", {"axis": "row"}),
    "mora sharing": ("mora", {"variant": "sharing", "alpha": 5.0}),
    "hira alpha": ("hira", {"alpha": 5.0}),
    "randlora alpha": ("randlora", {"alpha": 5.0}),
    "adalora alpha": ("adalora", {"alpha": 5.0}),
    "bidora row": ("bidora", {"axis": "row", "alpha": 5.0}),
    "delora alpha": ("delora", {"alpha": 5.0}),
    "delora zero": ("delora", {"subtract_start": False, "alpha": 5.0}),
    "oft shared": ("oft", {"block_share": True}),
    "oft series": ("oft", {"neumann_terms": 5}),
    "oft short series": ("oft", {"neumann_terms": 2}),
}
# The inner dimension of the factors, for those that have any.
FACTORS = {"lora": 3, "rslora": 3, "lora+": 3, "lora-fa": 3, "asylora": 3, "oa": 3, "pissa": 6, "corda": 6}
FACTORS |= {"delta-lora": 3, "delta-lora from step 20": 6, "vera": 3, "sbora-fa": 3, "sbora-fb": 3, "mora sharing": 7}
FACTORS |= {"delora": 6, "delora zero": 3, "adalora": 3}
# SBoRA Table 1, BoRA §3.2 and DoRA §5.1 (a magnitude a row or column), Dual LoRA §3.3 (two groups).
COUNTS = {
    "lora": RANK * (OUT + IN),
    "rslora": RANK * (OUT + IN),
    "dora": RANK * (OUT + IN) + IN,
    "dora-row": RANK * (OUT + IN) + OUT,
    "bora": RANK * (OUT + IN) + OUT + IN,
    "sbora-fa": OUT * RANK,
    "sbora-fb": IN * RANK,
    "dual-lora": 2 * RANK * (OUT + IN),
    **dict.fromkeys(["lora+", "pissa", "corda", "delta-lora", "hira"], RANK * (OUT + IN)),
    **dict.fromkeys(["lora-fa", "asylora", "oa"], RANK * OUT),
    "vera": RANK + OUT,
    "dvora": RANK + OUT + IN,
    "magnitude": IN,
    "mora": 6 * 6,  # ⌊√(18·3)⌋ = 7, even for the rotation
    "randlora": 3 * (RANK + IN),  # ⌈7 / 3⌉ bases
    "adalora": RANK * (OUT + IN + 1),
    "bidora": RANK * (OUT + IN) + IN,
    "delora": RANK * (OUT + IN) + 1,
    "map": RANK * (OUT + IN) + 2,
    "oft": IN * (IN - 1) // 2,  # no divisor of 7 below 7 is at least 3
}


# Those that a table's formula says in words.
IN_WORDS = {"ft", "galore", "magnitude", "mora", "oft"}


@pytest.mark.parametrize("name", sorted(set(METHODS) - IN_WORDS))
def test_the_formula_in_the_tables_is_the_number_of_parameters(name):
    method = create(name, rank=RANK)
    formula = method.counts.replace("·", "*").replace("⌈", "ceil(").replace("⌉", ")")
    formula = re.sub(r"\bin\b", "n", re.sub(r"r[₁₂]?", "r", formula))
    values = {"r": RANK, "out": OUT, "n": IN, "ceil": math.ceil, "min": min}
    assert eval(formula, {"__builtins__": {}}, values) == method.count(OUT, IN)


def method_of(case: str, **options: object):
    name, own = CASES[case]
    return create(name, **rank_of(name, RANK), **own, **options)


def rank_of(name: str, rank: int) -> dict[str, int]:
    return {"magnitude": {}, "oft": {"block_size": rank}}.get(name, {"rank": rank})


def covariance(columns: int) -> Tensor:
    x = torch.randn(3 * columns, columns, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x.T @ x / len(x)


def put_in(model: nn.Module, method, seed: int, **options: object) -> nn.Module:
    columns = {"0": model[0].weight.shape["Conv1D" not in type(model[0]).__name__]}
    context = {name: covariance(length) for name, length in columns.items()}
    return inject(model, method, targets=["0"], seed=seed, context=context, **options)


def model_with(case: str, dtype: torch.dtype = torch.float64, bias: bool = True, **options: object) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, OUT, bias=bias), nn.Tanh(), nn.Linear(OUT, 2)).to(dtype)
    return put_in(model, method_of(case, **options), seed=1, trainable=["2"])


def move(model: nn.Module, size: float = 0.3) -> AdaptedLayer:
    """Take the adapter away from its start, and Dual LoRA to the middle of its ramp."""
    layer = adapted(model)["0"]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        if "steps" in layer.state():
            layer.tensor("steps").fill_(30)
        for name in ("anchor_A", "anchor_B") if getattr(layer.method, "start_step", 0) == 20 else ():
            layer.tensor(name).copy_(torch.randn(layer.tensor(name).shape, generator=generator))
    layer.steps_taken()
    return layer


def defined(layer: AdaptedLayer, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The layer's output from the definition of W', with leaves of its own to differentiate by."""
    state = {name: value.detach().clone() for name, value in layer.state().items()}
    for value in state.values():
        if value.is_floating_point():
            value.requires_grad_(True)
    W = layer.method.weight(layer.base.to(x.dtype), state)
    return F.linear(x, W, None if layer.bias is None else layer.bias.to(x.dtype)), state


@pytest.mark.parametrize("case", CASES)
def test_identity_at_the_start(case):
    for dtype in (torch.float32, torch.float64):
        model = model_with(case, dtype)
        layer = adapted(model)["0"]
        difference = effective_weight(layer) - layer.base
        if case != "dual-lora no ramp":
            assert difference.norm() <= 1e-6 * layer.base.norm()
            x = torch.randn(5, IN, dtype=dtype)
            torch.testing.assert_close(layer(x), F.linear(x, layer.base, layer.bias))
        else:
            assert difference.norm() > 1e-3 * layer.base.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients_are_the_definition(case, bias, dtype, tolerance):
    model = model_with(case, dtype, bias)
    layer = move(model)
    x = torch.randn(2, 5, IN, dtype=dtype, requires_grad=True)
    out = layer(x)
    y = x.detach().clone().requires_grad_(True)
    expected, state = defined(layer, y)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(out, F.linear(x, effective_weight(layer), layer.bias), rtol=tolerance, atol=tolerance)

    g = torch.randn(out.shape, dtype=dtype)
    out.backward(g)
    expected.backward(g)
    torch.testing.assert_close(x.grad, y.grad, rtol=tolerance, atol=tolerance)
    trained = [name for name in layer.state() if isinstance(layer.tensor(name), nn.Parameter)]
    assert trained
    for name in trained:
        got, wanted = layer.tensor(name).grad, state[name].grad
        assert got is not None, name
        scale = wanted.abs().max().clamp(min=1.0).item()
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * scale)
    assert layer.weight.grad is None
    assert layer.bias is None or layer.bias.grad is None


# Gradients that are by design not those of W'; they have tests of their own.
WITHOUT = ("dual-lora", "delta-lora", "full gradient")
DIFFERENTIABLE = [case for case in CASES if not any(part in case for part in WITHOUT)]
DIFFERENTIABLE += ["dual-lora no sign", "dual-lora fixed"]


@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_detached_norms_leave_the_other_gradients_exact(case):
    """Against finite differences where nothing is detached, or for the magnitudes."""
    model = model_with(case, **({"warmup_steps": 0} if "dual" in case else {}))
    layer = move(model)
    x = torch.randn(4, IN, dtype=torch.float64)
    layer(x).square().sum().backward()
    names = [n for n in layer.state() if isinstance(layer.tensor(n), nn.Parameter)]
    detached = case.split()[0] in ("dora", "dora-row", "bora", "dvora")
    exact = [n for n in names if n in ("magnitude", "magnitude_column")] if detached else names
    assert exact
    for name in exact:
        parameter = layer.tensor(name)
        index = tuple(s // 2 for s in parameter.shape)
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter[index] += step
                values.append(layer(x).square().sum().item())
                parameter[index] -= step
        assert math.isclose((values[0] - values[1]) / 2e-6, parameter.grad[index].item(), rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if "full gradient" in case])
def test_full_gradient_by_finite_differences(case):
    layer = move(model_with(case))
    x = torch.randn(4, IN, dtype=torch.float64)
    names = [n for n in layer.state() if isinstance(layer.tensor(n), nn.Parameter)]

    def run(*values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    values = tuple(layer.tensor(n).detach().clone().requires_grad_(True) for n in names)
    assert torch.autograd.gradcheck(run, values)


@pytest.mark.parametrize("case", CASES)
def test_update_and_factors(case):
    layer = move(model_with(case))
    W, base = effective_weight(layer), base_weight(layer)
    assert (W - base).norm() > 1e-3
    torch.testing.assert_close(layer.update(), W - base, rtol=1e-12, atol=1e-14)
    factors = layer.factors()
    inner = FACTORS.get(case, FACTORS.get(case.split()[0]))
    if inner is not None:
        U, V = factors
        assert U.shape == (OUT, inner)
        assert V.shape == (inner, IN)
        torch.testing.assert_close(U @ V, W - base, rtol=1e-12, atol=1e-14)
    else:
        assert factors is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_scaled_factors_are_the_stored_numbers(case, dtype):
    layer = move(model_with(case))
    state = {name: t.detach().to(dtype) if t.is_floating_point() else t for name, t in layer.state().items()}
    found = layer.method.scaled_factors((OUT, IN), state)
    if found is not None:
        assert found.U.dtype == found.V.dtype == dtype
        wide = {name: t.double() if t.is_floating_point() else t for name, t in state.items()}
        update = layer.method.update(base_weight(layer), wide)
        torch.testing.assert_close(found.scaling * found.U.double() @ found.V.double(), update, rtol=1e-12, atol=1e-14)
    elif FACTORS.get(case, FACTORS.get(case.split()[0])) is not None:
        assert case.split()[0] in ("vera", "delta-lora", "delora", "adalora")  # whose factors have to be computed


@pytest.mark.parametrize("case", CASES)
def test_merge_equals_forward(case):
    model = model_with(case)
    move(model)
    x = torch.randn(5, IN, dtype=torch.float64)
    before = model(x)
    assert merge(model) is model
    assert type(model[0]) is nn.Linear
    assert not adapted(model)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_save_and_load(case, tmp_path):
    model = model_with(case)
    move(model)
    x = torch.randn(5, IN, dtype=torch.float64)
    file = tmp_path / "adapter.safetensors"
    save_adapters(model, file)
    wanted = model[0](x)
    same = load_adapters(model_with(case), file)
    assert torch.equal(same[0](x), wanted)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(IN, OUT), nn.Tanh(), nn.Linear(OUT, 2)).double()
    assert torch.equal(load_adapters(plain, file)[0](x), wanted)
    trained = {name for name, p in plain.named_parameters() if p.requires_grad}
    assert trained == {f"0.{name}" for name in adapted(model)["0"]._trainable}

    by_state_dict = model_with(case)
    by_state_dict.load_state_dict(model.state_dict())
    assert torch.equal(by_state_dict[0](x), wanted)  # no step is counted for the loading
    assert torch.equal(copy.deepcopy(model)[0](x), wanted)


@pytest.mark.parametrize("name", INJECTED)
def test_trainable_count_is_the_papers_formula(name):
    model = model_with(name)
    layer = adapted(model)["0"]
    trained = sum(p.numel() for p in layer.parameters() if p.requires_grad)
    assert trained == COUNTS[name] == layer.method.count(OUT, IN)
    head = sum(p.numel() for p in model[2].parameters())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained + head
    stored = layer.method.shapes(OUT, IN) | layer.method.frozen_shapes(OUT, IN)
    assert {key: tuple(value.shape) for key, value in layer.state().items()} == stored


@pytest.mark.parametrize("case", CASES)
def test_zero_rows_and_columns_make_no_nan(case):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, OUT)).double()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].weight[:, 4] = 0
    put_in(model, method_of(case), seed=0)
    layer = adapted(model)["0"]
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    start = effective_weight(layer).clone()
    if case != "dual-lora no ramp":
        torch.testing.assert_close(start, layer.base.detach())
    for _ in range(3):
        model(torch.randn(6, IN, dtype=torch.float64)).square().sum().backward()
        for parameter in layer.parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all()
        optimizer.step()
        optimizer.zero_grad()
        assert effective_weight(layer).isfinite().all()
    assert not torch.equal(effective_weight(layer), start)


@pytest.mark.parametrize("case", CASES)
def test_zero_matrix(case):
    model = nn.Sequential(nn.Linear(IN, OUT)).double()
    nn.init.zeros_(model[0].weight)
    put_in(model, method_of(case), seed=0)
    model(torch.randn(6, IN, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("case", [case for case in CASES if case.split()[0] not in ("magnitude", "oft")])
def test_dropout_acts_in_training_alone_and_keeps_the_mean(case):
    model = model_with(case, dropout=0.5)
    layer = move(model)
    x = torch.randn(3, IN, dtype=torch.float64)
    torch.manual_seed(4)
    drawn = torch.stack([layer(x) for _ in range(4000)])
    assert drawn.std(0).max() > 1e-3
    layer.eval()
    torch.testing.assert_close(layer(x), F.linear(x, effective_weight(layer), layer.bias), rtol=1e-12, atol=1e-12)
    assert (drawn.mean(0) - layer(x)).abs().max() < 5 * (drawn.std(0) / math.sqrt(4000)).max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_low_precision_base(case, dtype):
    """The adapter is kept in float32, the norms are made in float32, the output has the base's dtype."""
    model = model_with(case, torch.float32)
    wide = move(model)
    low = model_with(case, torch.float32)
    merge(low)
    with torch.no_grad():
        low[0].weight.copy_(wide.base)
    low = low.to(dtype)
    put_in(low, wide.method, seed=1)
    layer = adapted(low)["0"]
    assert all(p.dtype == torch.float32 for n, p in layer.named_parameters() if p.requires_grad)
    layer.load_state_dict({**layer.state_dict(), **wide.state()})
    x = torch.randn(4, IN).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    expected = F.linear(x.float(), effective_weight(layer), layer.bias.float())
    eps = torch.finfo(dtype).eps
    assert (out.float() - expected).abs().max() <= 8 * eps * expected.abs().max()
    reference, state = defined(layer, x.float())
    out.sum().backward()
    reference.sum().backward()
    for name in layer._trainable:
        got, wanted = layer.tensor(name).grad, state[name].grad
        assert got.dtype == torch.float32
        assert (got - wanted).abs().max() <= 16 * eps * wanted.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_autocast(case):
    model = model_with(case, torch.float32)
    layer = move(model)
    x = torch.randn(4, IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    expected = layer(x)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() <= 0.05 * expected.abs().max()
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_autocast_gives_what_the_definition_gives_under_it(case, bias):
    """Output and gradients are no further from float32's than those of x W'ᵀ + b under autocast and a few roundings."""
    model = model_with(case, torch.float32, bias)
    layer = move(model)
    x = torch.randn(2, 40, IN, generator=torch.Generator().manual_seed(3))
    g = torch.randn(2, 40, OUT, generator=torch.Generator().manual_seed(4))
    names = [name for name in layer.state() if isinstance(layer.tensor(name), nn.Parameter)]

    def found(low: bool, definition: bool) -> dict[str, Tensor]:
        y = x.clone().requires_grad_(True)
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out, state = defined(layer, y) if definition else (layer(y), layer.state())
        if low:
            assert out.dtype == torch.bfloat16
        out.float().backward(g)
        gradients = {name: state[name].grad.clone() for name in names}
        assert all(value.dtype == torch.float32 for value in gradients.values())
        return {"out": out.detach().float(), "x": y.grad, **gradients}

    eps = torch.finfo(torch.bfloat16).eps
    exact, plain, fast = found(False, True), found(True, True), found(True, False)
    for name, wanted in exact.items():
        size = wanted.norm().clamp(min=1e-3)
        assert (fast[name] - wanted).norm() <= 1.5 * (plain[name] - wanted).norm() + 2 * eps * size, name


SCALING = [case for case in CASES if any("magnitude" in name for name in method_of(case).shapes(OUT, IN))]


@pytest.mark.parametrize("case", SCALING)
def test_a_small_change_of_a_magnitude_is_seen_under_autocast(case):
    """Also where the factor itself, 1.001, would be rounded to 1: on average over the outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 60, bias=False))
    layer = adapted(put_in(model, method_of(case), seed=1))["0"]
    x = torch.randn(50, 80, generator=torch.Generator().manual_seed(3)).bfloat16()
    before = F.linear(x.float(), layer.base)
    with torch.no_grad():
        for name in layer.state():
            if name.startswith("magnitude"):
                layer.tensor(name).mul_(1.001)
        wanted = F.linear(x.float(), effective_weight(layer))
        with torch.autocast("cpu", torch.bfloat16):
            after = layer(x).float()
    moved = [(value * before).sum().item() / before.square().sum().item() - 1 for value in (after, wanted)]
    assert moved[1] > 9e-4
    assert moved[0] == pytest.approx(moved[1], abs=1.5e-4)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, in dynamo
@pytest.mark.parametrize("case", INJECTED)
def test_compile(case):
    torch._dynamo.reset()
    model = model_with(case, torch.float32)
    layer = move(model)
    x = torch.randn(4, IN, requires_grad=True)
    expected = layer(x)
    expected.square().sum().backward()
    wanted = {name: layer.tensor(name).grad.clone() for name in layer._trainable}
    model.zero_grad()
    compiled = torch.compile(layer, backend="aot_eager")
    out = compiled(x)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    for name, gradient in wanted.items():
        torch.testing.assert_close(layer.tensor(name).grad, gradient)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("case", INJECTED)
def test_gradient_checkpointing(case, reentrant):
    from torch.utils.checkpoint import checkpoint

    model = model_with(case)
    layer = move(model)
    x = torch.randn(4, IN, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    wanted = {name: layer.tensor(name).grad.clone() for name in layer._trainable}
    model.zero_grad()
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    for name, gradient in wanted.items():
        torch.testing.assert_close(layer.tensor(name).grad, gradient)


@pytest.mark.parametrize("name", INJECTED)
def test_never_more_than_one_dense_matrix_for_backward(name):
    """Dual LoRA keeps one, W_m ⊙ W_d, and so does RandLoRA, its scaled bases; every other method none at all."""
    for full in ({}, {"detach_norm": False}) if name in ("dora", "dora-row", "bora", "dvora") else ({},):
        model = nn.Sequential(nn.Linear(40, 60)).double()
        put_in(model, create(name, **rank_of(name, 2), **full), seed=0)
        layer, dense = adapted(model)["0"], set()
        kept = (layer.weight, layer.residual, *layer.state().values())
        own = {t.untyped_storage().data_ptr() for t in kept if t is not None}

        def pack(tensor, dense=dense, own=own):
            place = tensor.untyped_storage().data_ptr()
            if tensor.numel() >= 1600 and place not in own:
                dense.add(place)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.randn(3, 40, dtype=torch.float64, requires_grad=True)).sum().backward()
        assert len(dense) == (1 if name in ("dual-lora", "randlora") else 0)


@pytest.mark.parametrize(("rows", "columns"), [(6, 15), (15, 6), (8, 8), (12, 5)])
@pytest.mark.parametrize("case", CASES)
def test_any_shape(case, rows, columns):
    """Wide, tall, square, and sides that no chunk or base divides."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(columns, rows)).double()
    name, own = CASES[case]
    put_in(model, create(name, **rank_of(name, 2), **{k: v for k, v in own.items() if k != "direction_rank"}), seed=1)
    layer = move(model)
    x = torch.randn(6, columns, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_(True)
    out, (expected, state) = layer(x), defined(layer, y)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    g = torch.randn(out.shape, dtype=torch.float64)
    out.backward(g)
    expected.backward(g)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-11, atol=1e-11)
    for key in layer._trainable:
        torch.testing.assert_close(layer.tensor(key).grad, state[key].grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_transformers_conv1d(case):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = nn.Sequential(conv1d(OUT, IN)).double()
    nn.init.normal_(model[0].bias)
    wanted = model[0].weight.detach().T.clone()
    put_in(model, method_of(case), seed=0)
    assert torch.equal(base_weight(model[0]), wanted)
    layer = move(model)
    x = torch.randn(2, 5, IN, dtype=torch.float64)
    out = layer(x)
    torch.testing.assert_close(out, F.linear(x, effective_weight(layer), layer.bias))
    merge(model)
    assert type(model[0]) is conv1d
    torch.testing.assert_close(model(x), out)


def test_state_of_the_wrong_shape_is_named():
    layer = adapted(model_with("bora"))["0"]
    state = layer.state() | {"lora_A": torch.zeros(2, 2)}
    with pytest.raises(ShapeError, match="lora_A"):
        layer.method.check_state(layer.base, state)


@pytest.mark.parametrize("name", INJECTED)
def test_options_round_trip(name):
    method = create(name, **rank_of(name, 5))
    assert method.name == name
    assert create(method.name, **method.options()) == method


@pytest.mark.parametrize(
    ("options", "named"),
    [({"rank": 0}, "rank"), ({"rank": -1}, "rank"), ({"rank": 2.5}, "rank"), ({"alpha": 0}, "alpha"),
     ({"alpha": float("nan")}, "alpha"), ({"dropout": 1.0}, "dropout"), ({"width": 3}, "width")],
)  # fmt: skip
@pytest.mark.parametrize("name", INJECTED)
def test_bad_options_are_named(name, options, named):
    with pytest.raises(OptionError, match=named):
        create(name, **options)


def test_unknown_method_lists_the_choices():
    with pytest.raises(OptionError, match="dual-lora"):
        create("lorax")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_scaled_low_rank_form_is_the_weight(case, dtype):
    layer = move(model_with(case, dtype))
    state = {key: value.detach() for key, value in layer.state().items()}
    wide = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
    form = layer.method.scaled_low_rank(base_weight(layer), wide)
    name = case.split()[0]
    if not (
        name in FACTORS
        or case in FACTORS
        or name in {"dora", "dora-row", "bora", "dvora", "magnitude", "map", "bidora"}
    ):
        assert form is None
        return
    rho, gamma, U, V = form
    assert {t.dtype for t in form} == {torch.float64}
    W = rho[:, None] * (base_weight(layer).double() + U @ V) * gamma
    torch.testing.assert_close(W, layer.method.weight(base_weight(layer).double(), wide), rtol=1e-12, atol=1e-14)

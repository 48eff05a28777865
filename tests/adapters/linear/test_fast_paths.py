"""What is fast in the adapters, against what is plain: blocks, the one autograd function, and nothing stale."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deltaw.adapters import create, inject
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.linear import blocks, low_rank
from deltaw.adapters.methods import dual_lora
from deltaw.adapters.methods.sbora import _GatheredLinear, _ScatteredLinear

OUT, IN, RANK, TOKENS = 11, 7, 3, 5
FULL = {"detach_norm": False}
CASES = [("lora", {}), ("dora", {}), ("dora-row", {}), ("bora", {}), ("dora", FULL), ("dora-row", FULL), ("bora", FULL)]


def layer_of(method: str, dtype: torch.dtype = torch.float64, out: int = OUT, in_: int = IN, **options) -> AdaptedLayer:
    """A layer away from its start."""
    torch.manual_seed(0)
    layer = inject(nn.Sequential(nn.Linear(in_, out)).to(dtype), create(method, rank=RANK, **options), ["0"], seed=0)[0]
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return layer


def gradients(layer: AdaptedLayer, output: Tensor, x: Tensor, **options) -> dict[str, Tensor]:
    leaves = {name: p for name, p in layer.named_parameters() if p.requires_grad} | {"x": x}
    g = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return dict(zip(leaves, torch.autograd.grad(output, list(leaves.values()), g, **options), strict=True))


def defined(layer: AdaptedLayer, x: Tensor) -> Tensor:
    return F.linear(x, layer.method.weight(layer.base, layer.state()), layer.bias)


@pytest.mark.parametrize("entries", [1, 20, 33])  # one row at a time, two, and four with a shorter last block
@pytest.mark.parametrize(("method", "options"), [*CASES, ("dual-lora", {"warmup_steps": 0}), ("dual-lora", {})])
def test_many_blocks_are_the_definition(method, options, entries, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", entries)
    monkeypatch.setattr(dual_lora, "BLOCK", 1)
    layer = layer_of(method, **options)
    x = torch.randn(2, TOKENS, IN, dtype=torch.float64, requires_grad=True)
    out, expected = layer(x), defined(layer, x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    got, wanted = gradients(layer, out, x), gradients(layer, expected, x)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (11, 7), (64, 5), (0, 4)])
@pytest.mark.parametrize("entries", [1, 9, 1000])
def test_row_blocks_cut_the_matrix_once(shape, entries, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", entries)
    matrix = torch.arange(shape[0] * shape[1]).view(shape)
    parts = list(blocks.row_blocks(matrix))
    assert parts
    assert torch.equal(torch.cat([block for _, block in parts]), matrix)
    assert torch.equal(torch.cat([matrix[rows] for rows, _ in parts]), matrix)
    assert all(block.numel() <= max(entries, shape[1]) for _, block in parts)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale_in", [True, False])
@pytest.mark.parametrize("scale_out", [True, False])
@pytest.mark.parametrize("started", [True, False])
def test_the_one_function_is_the_composition(bias, scale_in, scale_out, started):
    """Values, gradients by every argument (an unfrozen weight and bias, too), and second derivatives."""
    torch.manual_seed(0)
    shapes = [(TOKENS, IN), (OUT, IN), (OUT,), (RANK, IN), (OUT, RANK), (OUT,), (IN,)]
    x, weight, b, A, B, rho, gamma = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    start = (torch.randn_like(A).detach(), torch.randn_like(B).detach()) if started else None
    arguments = (x, weight, b if bias else None, A, B, rho if scale_out else None, gamma if scale_in else None)

    def of(function):
        present = [a for a in arguments if a is not None]

        def run(*values):
            given = iter(values)
            x, weight, b, A, B, rho, gamma = (None if a is None else next(given) for a in arguments)
            return function(x, weight, b, A, B, 1.7, rho, gamma, start)

        return run, present

    (fast, present), (slow, _) = of(low_rank._LowRankLinear.apply), of(low_rank._composed)
    torch.testing.assert_close(fast(*present), slow(*present))
    assert torch.autograd.gradcheck(fast, present)
    assert torch.autograd.gradgradcheck(fast, present)


@pytest.mark.parametrize("variant", ["FA", "FB"])
@pytest.mark.parametrize("bias", [True, False])
def test_sboras_functions_are_the_compositions(variant, bias):
    """Values, gradients, and second derivatives, with those by way of the gathered columns."""
    torch.manual_seed(0)
    shapes = [(TOKENS, IN), (OUT,), (OUT, RANK) if variant == "FA" else (RANK, IN)]
    x, b, trained = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    weight, indices = torch.randn(OUT, IN, dtype=torch.float64), torch.tensor([1, 2, 6])
    present = [x, b, trained] if bias else [x, trained]

    def fast(x, *rest):
        b, trained = rest[0] if bias else None, rest[-1]
        if variant == "FA":
            return _GatheredLinear.apply(x, x.index_select(1, indices), weight, b, trained, indices, 1.7)
        return _ScatteredLinear.apply(x, weight, b, trained, indices, 1.7)

    def slow(x, *rest):
        result = F.linear(x, weight, rest[0] if bias else None)
        if variant == "FA":
            return result + 1.7 * x[:, indices] @ rest[-1].T
        return result.index_add(1, indices, 1.7 * x @ rest[-1].T)

    torch.testing.assert_close(fast(*present), slow(*present))
    assert torch.autograd.gradcheck(fast, present)
    assert torch.autograd.gradgradcheck(fast, present)
    g = torch.randn(TOKENS, OUT, dtype=torch.float64)
    for got, wanted in zip(*(torch.autograd.grad(f(*present), present, g) for f in (fast, slow)), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("method", ["sbora-fa", "sbora-fb"])
def test_sbora_trains_a_base_that_is_unfrozen(method):
    layer = layer_of(method)
    layer.weight.requires_grad_(True)
    x, g = torch.randn(TOKENS, IN, dtype=torch.float64), torch.randn(TOKENS, OUT, dtype=torch.float64)
    layer(x).backward(g)
    torch.testing.assert_close(layer.weight.grad, g.T @ x)


@pytest.mark.parametrize("rank", [1, blocks.FEW_COLUMNS - 1, blocks.FEW_COLUMNS])
def test_a_thin_product_is_a_product(rank):
    x, thin = torch.randn(40, 30, dtype=torch.float64), torch.randn(30, rank, dtype=torch.float64)
    torch.testing.assert_close(blocks.thin_product(x, thin), x @ thin)
    torch.testing.assert_close(blocks.thin_product(thin.T, x.T), (x @ thin).T)


def test_dual_lora_refuses_a_second_derivative():
    layer = layer_of("dual-lora")
    x = torch.randn(TOKENS, IN, dtype=torch.float64, requires_grad=True)
    first = gradients(layer, layer(x).square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first["x"].sum().backward()


def test_one_of_the_gradients_alone():
    layer = layer_of("bora")
    x = torch.randn(TOKENS, IN, dtype=torch.float64, requires_grad=True)
    wanted = gradients(layer, layer(x), x)
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        for other in trained.values():
            other.requires_grad_(other is parameter)
        got = gradients(layer, layer(x.detach()) + 0 * x.sum(), x)
        torch.testing.assert_close(got[name], wanted[name])


@pytest.mark.parametrize("method", ["dora", "dora-row", "bora"])
def test_the_norms_follow_an_edit_of_the_base(method):
    """Also by ``.data``, which no version counter sees: nothing of W₀ is cached."""
    layer = layer_of(method)
    x = torch.randn(TOKENS, IN, dtype=torch.float64)
    before = layer(x)
    layer.weight.data.mul_(torch.linspace(0.5, 2, OUT, dtype=torch.float64)[:, None])
    layer.lora_B.data.add_(0.1)
    after = layer(x)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, defined(layer, x), rtol=1e-12, atol=1e-12)


class Largest(TorchDispatchMode):
    """Notes the entries of the largest tensor made, the views of the frozen weight aside."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.storage, self.entries = weight.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() != self.storage:
                self.entries = max(self.entries, tensor.numel())
        return made


@pytest.mark.parametrize(("method", "options"), CASES)
def test_no_dense_product_in_forward_or_backward(method, options, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 200)
    layer = layer_of(method, out=60, in_=40, **options)
    x = torch.randn(3, 40, dtype=torch.float64, requires_grad=True)
    with Largest(layer.weight) as largest:
        layer(x).sum().backward()
    assert largest.entries <= 240  # a block has 200, B in the compiled loop 240; W' would have 2,400


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, in dynamo
def test_compiled_dual_lora_counts_its_steps():
    torch._dynamo.reset()
    layer = layer_of("dual-lora", torch.float32)
    layer.steps_taken()
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.01)
    compiled = torch.compile(layer, backend="aot_eager")
    for steps in range(4):
        compiled(torch.randn(TOKENS, IN)).sum().backward()
        assert layer.steps == steps
        optimizer.step()


def test_sign_of_zero_is_minus_one():
    layer = layer_of("dual-lora", warmup_steps=0)
    with torch.no_grad():
        layer.lora_D[2] = 0
        layer.lora_B[2], layer.lora_A[:] = 1.0, 1.0
    x = torch.randn(TOKENS, IN, dtype=torch.float64)
    assert (layer.update()[2] < 0).all()
    torch.testing.assert_close(layer(x), defined(layer, x), rtol=1e-12, atol=1e-12)

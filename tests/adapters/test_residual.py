"""PiSSA and CorDA: the forward is with a residual, which follows W₀, and W₀ is left as it is."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from deltaw.adapters import CorDA, LoRA, PiSSA, adapted, base_weight, effective_weight, inject, merge
from deltaw.adapters.residual import residual_of
from deltaw.analysis import Trajectory
from deltaw.trainers import Recorder

OUT, IN = 12, 9


def bits(matrix):
    return matrix.detach().contiguous().numpy().view(np.uint64 if matrix.dtype == torch.float64 else np.uint32)


def same_bits(one, other):
    return one.dtype == other.dtype and np.array_equal(bits(one), bits(other))


def plain(dtype=torch.float32, kind=nn.Linear):
    torch.manual_seed(0)
    return nn.Sequential(Conv1D(OUT, IN) if kind is Conv1D else nn.Linear(IN, OUT)).to(dtype)


def injected(dtype=torch.float32, kind=nn.Linear, **options):
    return inject(plain(dtype, kind), PiSSA(rank=3, **options), ["0"])


def original(dtype=torch.float32, kind=nn.Linear):
    weight = plain(dtype, kind)[0].weight.detach()
    return weight.T.contiguous() if kind is Conv1D else weight


def moved(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator).to(p.dtype)
    return model


def forward_is_the_definition(model, tolerance=1e-5):
    layer = adapted(model)["0"]
    x = torch.randn(4, IN).to(layer.weight.dtype)
    wanted = x @ effective_weight(layer).to(x.dtype).T + layer.bias
    torch.testing.assert_close(model(x), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (40, 30), (3, 200), (900, 700)])
@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 1e6])
def test_a_residual_is_rounded_once(dtype, shape, size):
    """Entries of every size, zeros of both signs, subnormal numbers; and what is taken out small, or far larger."""
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(shape, generator=generator, dtype=torch.float64)
    W = (W * 10 ** (8 * torch.randn(shape, generator=generator, dtype=torch.float64))).to(dtype)
    W[0, 0] = -0.0
    W.flatten()[-1:] = 1e-40
    U = size * torch.randn(shape[0], 2, generator=generator, dtype=dtype)
    V = torch.randn(2, shape[1], generator=generator, dtype=dtype)
    before = W.clone()
    residual = residual_of(W, U, V)
    assert same_bits(W, before)
    exact = before.double() - U.double() @ V.double()
    torch.testing.assert_close(residual, exact.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-15 * max(size, 1.0))


def test_a_step_does_what_loras_does():
    """One product with a matrix, and two thin ones with A and B: nothing is made of W₀, A₀ or B₀ in a step."""

    def operations(method):
        model = moved(inject(plain(), method, ["0"]))
        with Calls() as calls:
            model(torch.randn(4, IN)).sum().backward()
        return calls.names

    assert operations(PiSSA(rank=3)) == operations(LoRA(rank=3))


class Calls(TorchDispatchMode):
    """Notes the operations and the shapes that they are called with."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
        self.names.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


def test_a_residual_is_no_part_of_the_model():
    model = injected()
    layer = model[0]
    assert layer.residual.data_ptr() != layer.weight.data_ptr()
    known = {*model.state_dict(), *dict(model.named_buffers()), *dict(model.named_parameters())}
    assert {name.removeprefix("0.") for name in known} == {"weight", "bias", "lora_A", "lora_B", "start_A", "start_B"}
    made = layer.residual
    model.eval()
    model(torch.randn(2, IN))
    model.train()
    model.to("cpu")
    assert layer.residual is made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("method", [PiSSA(rank=3, alpha=5), PiSSA(rank=3, iterations=1), CorDA(rank=3)])
def test_a_layer_has_a_residual_and_w0(dtype, kind, method):
    W = original(dtype, kind)
    model = inject(plain(dtype, kind), method, ["0"], context={"0": torch.eye(IN)})
    layer = moved(model)[0]
    assert layer.holds_residual
    residual = W - method.scaling * layer.start_B @ layer.start_A
    torch.testing.assert_close(layer.residual, residual)
    assert same_bits(layer.base, W)
    assert same_bits(layer.weight, plain(dtype, kind)[0].weight)
    assert same_bits(base_weight(layer), W)
    stored = model.state_dict()["0.weight"]
    assert same_bits(stored, plain(dtype, kind)[0].weight)
    forward_is_the_definition(model)
    wanted = W + layer.update()
    torch.testing.assert_close(effective_weight(layer), wanted)
    torch.testing.assert_close(effective_weight(merge(model)[0]), wanted)


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_of_the_base_loads_and_is_left_alone(assign):
    torch.manual_seed(5)
    other = nn.Sequential(nn.Linear(IN, OUT)).state_dict()
    kept = copy.deepcopy(other)
    model = moved(injected())
    model.load_state_dict(other, strict=False, assign=assign)
    assert model[0].holds_residual
    assert same_bits(model[0].base, kept["0.weight"])
    assert same_bits(other["0.weight"], kept["0.weight"])
    forward_is_the_definition(model)


def test_a_checkpoint_of_another_start_loads():
    torch.manual_seed(6)
    source = moved(inject(nn.Sequential(nn.Linear(IN, OUT)), PiSSA(rank=3), ["0"]))
    model = injected()
    model.load_state_dict(source.state_dict())
    x = torch.randn(4, IN)
    assert torch.equal(model(x), source(x))
    assert same_bits(model[0].base, source[0].base)
    assert torch.equal(copy.deepcopy(source)(x), source(x))


def test_conversions():
    model = moved(injected())
    wide = copy.deepcopy(model).double()
    assert wide[0].holds_residual
    assert torch.equal(wide[0].base, original().double())
    forward_is_the_definition(wide)
    assert same_bits(wide.float()[0].base, original())
    forward_is_the_definition(wide)
    low = copy.deepcopy(model).bfloat16()
    assert not low[0].holds_residual
    assert torch.equal(low[0].base, original().bfloat16())
    forward_is_the_definition(low, 5e-2)
    assert same_bits(model.to("cpu")[0].base, original())
    empty = copy.deepcopy(model).to("meta")
    assert not empty[0].holds_residual
    again = empty.to_empty(device="cpu")
    again.load_state_dict(model.state_dict())
    x = torch.randn(4, IN)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_of_low_precision_stays_as_it_is(dtype):
    model = moved(injected(dtype))
    assert not model[0].holds_residual
    assert torch.equal(model[0].weight, original(dtype))


def test_a_shared_weight_is_not_written_over():
    model = nn.ModuleDict({"embedding": nn.Embedding(OUT, IN), "head": nn.Linear(IN, OUT, bias=False)})
    model["head"].weight = model["embedding"].weight
    before = model["embedding"].weight.detach().clone()
    inject(model, PiSSA(rank=3), ["head"])
    assert torch.equal(model["embedding"].weight, before)
    assert torch.equal(model["head"].base, before)


def test_a_base_that_is_trained_after_all():
    """Then W₀ itself has the gradient, and once it is frozen again there is a residual of what has become of it."""
    model = inject(plain(), PiSSA(rank=3), ["0"], trainable=["0.weight"])
    layer, weight = model[0], model[0].weight
    assert not layer.holds_residual
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)  # which raises no version counter
    model(torch.randn(4, IN)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(weight, original())
    assert layer.base.data_ptr() == weight.data_ptr()
    forward_is_the_definition(model)
    model.load_state_dict(model.state_dict())
    assert model[0].weight is weight  # the optimizer's
    forward_is_the_definition(model)
    weight.requires_grad_(False)
    assert layer.holds_residual
    forward_is_the_definition(model)


def test_a_base_that_is_edited():
    model = injected()
    with torch.no_grad():
        model[0].weight.mul_(2)
    forward_is_the_definition(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied[0].weight.mul_(2)
    forward_is_the_definition(copied)
    forward_is_the_definition(model)
    forward_is_the_definition(pickle.loads(pickle.dumps(copied)))


def test_a_residual_made_while_evaluating_serves_training():
    model = injected()
    with torch.no_grad():
        model[0].weight.mul_(2)
    with torch.inference_mode():
        model(torch.randn(4, IN))
    model(torch.randn(4, IN)).sum().backward()
    assert model[0].lora_A.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_base_that_is_converted_behind_the_layers_back(dtype):
    """As FSDP2 does for the time of a forward in mixed precision."""
    layer = injected()[0]
    layer.weight.data = layer.weight.data.to(dtype)
    assert layer.base.dtype == dtype
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(layer.base.float(), original(), rtol=1e-2, atol=tolerance)


def test_a_record_has_w0_to_the_last_bit(tmp_path):
    model = injected()
    with Recorder(model, tmp_path) as recorder:
        recorder.record(0)
        moved(model)
        recorder.record(1)
    run = Trajectory.open(tmp_path)
    assert same_bits(run.base("0"), original())
    assert torch.equal(run.weight("0", 1), effective_weight(model[0]))
    assert run.spectra(steps=[0, 1])["rank"].tolist() == [0, 6]


def test_another_weight_with_the_id_of_the_one_before_is_no_change():
    """Python gives ids out again: FSDP2 puts parameters in the weight's place, made anew for each forward."""
    layer = adapted(injected())["0"]
    residual, value = layer.residual, layer.weight.detach().clone()
    before = id(layer.weight)
    for _ in range(1000):
        layer._parameters["weight"] = None
        layer._parameters["weight"] = nn.Parameter(value, requires_grad=False)
        if id(layer.weight) == before:
            break
    else:
        pytest.skip("this Python gives no id out again")
    for _ in range(3):
        layer.weight.mul_(1)  # another version than that of the first
    assert layer.residual is residual

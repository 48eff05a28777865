"""Every method on a base in 4 bits: the same W', gradients and records as on the dequantised matrix."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.adapters import (
    METHODS,
    BoRA,
    DataError,
    LoRA,
    NonFiniteError,
    OptionError,
    TargetError,
    adapted,
    base_weight,
    create,
    effective_weight,
    inject,
    input_covariances,
    load_adapters,
    merge,
    quantize,
    save_adapters,
)
from deltaw.adapters.bitsandbytes import QuantizedLayer, load_bitsandbytes
from deltaw.adapters.methods.registry import options_of
from deltaw.adapters.modules import linear_shape
from deltaw.analysis import Trajectory, spectrum
from deltaw.trainers import Recorder

library = load_bitsandbytes()

OUT, IN = 48, 64
INJECTED = [name for name in METHODS if create(name).injects]
OWN_DENSE = ("dual-lora", "randlora")  # they keep one matrix of their own for the backward
# The levels of NF4, Appendix E of the paper.
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip


def net(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, OUT, bias=bias), nn.Tanh(), nn.Linear(OUT, 2)).to(dtype)


def method_of(name: str):
    options = {"rank": 4} if "rank" in options_of(name) else {}
    return create(name, **options, **({"warmup_steps": 0, "init_std": 0.3} if name == "dual-lora" else {}))


def put_in(model: nn.Module, name: str) -> QuantizedLayer:
    """Inject, and take the adapter away from its start."""
    x = torch.randn(3 * IN, IN, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    inject(model, method_of(name), ["0"], seed=1, context={"0": x.T @ x / len(x)})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return adapted(model)["0"]


def pair(name: str, dtype: torch.dtype = torch.float32, bias: bool = True):
    """A method on a base in 4 bits, and on a plain layer that holds the dequantised matrix."""
    model, plain = quantize(net(dtype, bias), "0"), net(dtype, bias)
    with torch.no_grad():
        plain[0].weight.copy_(base_weight(model[0]))
    other = put_in(plain, name)
    other._residual = None  # over 4 bits there is none, and in bfloat16 its product is another one
    return put_in(model, name), other


def results(layer: nn.Module, x: Tensor, autocast: bool = False) -> dict[str, Tensor]:
    x = x.clone().requires_grad_(True)
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype))
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.requires_grad}
    assert all(value is not None for value in gradients.values())
    return {"out": out.detach(), "x": x.grad} | gradients


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype
        scale = value.float().abs().max().item()
        eps = torch.finfo(value.dtype).eps
        torch.testing.assert_close(got[name], value, rtol=8 * eps, atol=8 * eps * scale, msg=name)


def nearest_levels(W: Tensor, block_size: int) -> Tensor:
    """What W is after NF4: for every block, in the order of memory, the nearest level times the largest entry."""
    levels = torch.tensor(NF4)
    parts = []
    for block in W.flatten().split(block_size):
        constant = block.abs().max()
        parts.append(constant * levels[(block / constant)[:, None].sub(levels).abs().argmin(1)])
    return torch.cat(parts).reshape(W.shape)


@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-6), (True, 2e-2)])
@pytest.mark.parametrize("block_size", [32, 64])
def test_quantize_takes_the_nearest_level(block_size, double, tolerance):
    model = net()
    wanted = nearest_levels(model[0].weight.detach(), block_size)
    quantize(model, "0", block_size=block_size, double_quantization=double)
    W0 = base_weight(model[0])
    assert (W0 - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert model[0].weight.quant_state.nested is double
    x = torch.randn(3, IN)
    for training in (True, False):
        torch.testing.assert_close(model.train(training)[0](x), F.linear(x, W0, model[0].bias))


@pytest.mark.parametrize("shape", [(48, 80), (64, 16), (2, 80), (48, 96), (50, 3), (5, 7), (1, 2), (2, 1), (1, 1)])
def test_w0_of_a_layer_whose_rows_the_blocks_do_not_fit(shape):
    """bitsandbytes 0.50.2 itself is up to 30 % off for some of these shapes on a CPU with AVX512."""
    torch.manual_seed(0)
    rows, columns = shape
    layer = library.nn.Linear4bit(columns, rows, quant_type="nf4", compress_statistics=False)
    wanted = nearest_levels(layer.weight.detach().clone(), 64)
    model = nn.Sequential(layer.to("cpu"))
    torch.testing.assert_close(base_weight(model[0]), wanted)
    inject(model, LoRA(rank=1), ["0"])
    x = torch.randn(3, columns)
    torch.testing.assert_close(model(x), F.linear(x, wanted, model[0].bias))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", INJECTED)
def test_values_and_gradients_are_those_on_the_dequantised_matrix(name, bias):
    layer, plain = pair(name, bias=bias)
    assert type(layer) is QuantizedLayer
    assert torch.equal(layer.base, plain.base)
    for key, value in plain.state().items():
        assert torch.equal(layer.tensor(key), value)
    x = torch.randn(2, 5, IN)
    assert_same(results(layer, x), results(plain, x))
    for both in (effective_weight, base_weight, lambda one: one.update()):
        assert torch.equal(both(layer), both(plain))


@pytest.mark.parametrize("name", INJECTED)
def test_a_base_of_low_precision(name):
    """The method's tensors are in float32, W₀ and the output in bfloat16, as on a plain layer."""
    layer, plain = pair(name, torch.bfloat16)
    assert layer.base.dtype == torch.bfloat16
    assert all(layer.tensor(key).dtype == torch.float32 for key in layer._trainable)
    x = torch.randn(5, IN).bfloat16()
    assert_same(results(layer, x), results(plain, x))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", INJECTED)
def test_no_dense_matrix_is_kept_for_the_backward(name, autocast):
    """Neither W₀ nor a copy of it in another precision; what is kept in all is seen by hooks around the layer."""
    layer, plain = pair(name)
    x = torch.randn(3, IN)
    kept: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    wanted = results(plain, x, autocast)
    with hooks:
        got = results(layer, x, autocast)
    assert_same(got, wanted)
    assert layer._now is None
    own = {value.untyped_storage().data_ptr() for value in layer.state().values()}
    dense = {t.untyped_storage().data_ptr() for t in kept if t.numel() >= OUT * IN} - own
    assert kept
    assert len(dense) <= (name in OWN_DENSE) * (1 + autocast)


def test_the_base_stays_in_4_bits():
    model = quantize(net(), "0")
    before = model[0].weight.nbytes
    layer = adapted(inject(model, LoRA(rank=2), ["0"]))["0"]
    layer(torch.randn(3, IN)).sum().backward()
    constants = layer.weight.quant_state
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.nbytes == before == OUT * IN // 2
    assert constants.absmax.nbytes + constants.state2.absmax.nbytes <= OUT * IN / 64 + 4 * (OUT * IN / 64 / 256 + 1)
    held = sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers()))
    assert held == before + 4 * (OUT + 2 * (OUT + IN))


def test_an_evaluation_before_injecting_leaves_the_base():
    """On a CPU with AVX512-BF16 the library repacks a layer that is evaluated, and rounds its constants."""
    model = quantize(net(), "0")
    base = base_weight(model[0])
    with torch.no_grad():
        model.eval()(torch.randn(3, IN))
    assert torch.equal(base_weight(model[0]), base)
    inject(model, LoRA(rank=2), ["0"])
    assert torch.equal(base_weight(model[0]), base)


def test_a_layer_that_the_library_has_repacked_is_read_all_the_same():
    model = quantize(nn.Sequential(nn.Linear(64, 32)), "0").eval()
    base = base_weight(model[0])
    model[0].support_avx512bf16_for_cpu = True  # as the library's own layers have it where the CPU has
    weight = model[0].weight
    pack = sys.modules[type(model[0]).__module__]._convert_weight_packed_for_cpu
    weight.data, weight.quant_state = pack(weight.data, weight.quant_state)
    repacked = base_weight(copy.deepcopy(model[0]))
    assert 0 < (repacked - base).abs().max() < 0.02 * base.abs().max()
    inject(model, LoRA(rank=2), ["0"])
    assert torch.equal(base_weight(model[0]), repacked)


@pytest.mark.parametrize("name", INJECTED)
def test_merge_save_load_and_copy(name, tmp_path):
    model = quantize(net(), "0")
    layer = put_in(model, name)
    x = torch.randn(5, IN)
    wanted = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), wanted)

    save_adapters(model, tmp_path / "adapter")
    assert torch.equal(load_adapters(quantize(net(), "0"), tmp_path / "adapter")[0](x), wanted)
    other = quantize(net(), "0")
    put_in(other, name)
    assert torch.equal(load_adapters(other, tmp_path / "adapter")[0](x), wanted)

    torch.manual_seed(9)
    elsewhere = nn.Sequential(nn.Linear(IN, OUT), nn.Tanh(), nn.Linear(OUT, 2))
    put_in(quantize(elsewhere, "0"), name)
    elsewhere.load_state_dict(model.state_dict())  # with the packed base
    assert torch.equal(elsewhere[0](x), wanted)

    W = effective_weight(layer)
    merge(model)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, W)
    torch.testing.assert_close(model[0](x), wanted)


def test_merge_into_the_dtype_that_the_layer_computes_in():
    model = quantize(net(torch.bfloat16), "0")
    inject(model, LoRA(rank=2), ["0"])
    assert effective_weight(model[0]).dtype == torch.float32
    assert merge(model)[0].weight.dtype == torch.bfloat16


def test_conversion_of_the_model():
    model = quantize(net(), "0")
    layer = put_in(model, "bora")
    base = layer.base
    model.double()
    assert layer.base.dtype == torch.float64
    assert torch.equal(layer.base, base.double())
    assert layer(torch.randn(2, IN, dtype=torch.float64)).dtype == torch.float64
    assert model.bfloat16()[0].base_dtype == torch.bfloat16
    assert model(torch.randn(2, IN).bfloat16()).dtype == torch.bfloat16


def test_the_output_has_the_dtype_of_the_input():
    model = quantize(net(torch.bfloat16), "0").float()
    layer = put_in(model, "bora")
    assert layer.base_dtype == torch.bfloat16
    assert layer.bias.dtype == torch.bfloat16
    assert layer(torch.randn(3, IN)).dtype == torch.float32


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["lora", "bora", "hira", "dual-lora"])
def test_gradient_checkpointing(name, reentrant):
    from torch.utils.checkpoint import checkpoint

    layer, _ = pair(name)
    x = torch.randn(4, IN)
    wanted = results(layer, x)
    got = results(Checkpointed(layer, lambda *a: checkpoint(*a, use_reentrant=reentrant)), x)
    assert_same({key.removeprefix("layer."): value for key, value in got.items()}, wanted)


class Checkpointed(nn.Module):
    def __init__(self, layer, run):
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, x):
        return self.run(self.layer, x)


def test_what_changed_between_forward_and_backward_is_an_error():
    layer, _ = pair("lora")
    x = torch.randn(3, IN)
    out = layer(x)
    with torch.no_grad():
        layer.lora_B.add_(1.0)
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, in dynamo
def test_compile():
    torch._dynamo.reset()
    layer, _ = pair("bora")
    x = torch.randn(4, IN)
    wanted = results(layer, x)
    assert_same(results(torch.compile(nn.Sequential(layer), backend="aot_eager"), x), {
        key if key in ("out", "x") else f"_orig_mod.0.{key}": value for key, value in wanted.items()
    })  # fmt: skip


def test_transformers_conv1d():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = nn.Sequential(conv1d(OUT, IN))
    W = model[0].weight.detach().T.clone()
    quantize(model, "0")
    assert base_weight(model[0]).shape == (OUT, IN)
    assert (base_weight(model[0]) - W).norm() < 0.15 * W.norm()
    x = torch.randn(3, IN)
    out = model(x)
    inject(model, BoRA(rank=2), ["0"])
    torch.testing.assert_close(model(x), out)
    assert type(merge(model)[0]) is nn.Linear


@pytest.mark.filterwarnings("ignore")  # what transformers warns of while it loads
def test_layers_that_transformers_loaded(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, vocab_size=20
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    four = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = transformers.BertModel.from_pretrained(tmp_path, quantization_config=four).train()
    query = model.encoder.layer[0].attention.self.query
    x = torch.randn(3, 64)
    out = query(x)
    assert linear_shape(query) == (64, 64)
    inject(model, BoRA(rank=2), ["*.query", "*.value"])
    layer = adapted(model)["encoder.layer.0.attention.self.query"]
    assert layer.base_dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), out, rtol=0.02, atol=0.02)
    model(torch.tensor([[1, 2, 3]])).last_hidden_state.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)


def test_peft_over_a_base_in_4_bits():
    peft = pytest.importorskip("peft")
    model = quantize(nn.Sequential(nn.Linear(IN, OUT)), "0")
    base = base_weight(model[0])
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights=False)
    layer = peft.get_peft_model(model, config).base_model.model[0].eval()
    assert linear_shape(layer) == (OUT, IN)
    assert torch.equal(base_weight(layer), base)
    x = torch.randn(3, IN)
    torch.testing.assert_close(layer(x) - layer.base_layer.bias, F.linear(x, effective_weight(layer)))


def test_covariances_of_a_model_in_4_bits():
    model = quantize(net(), "0")
    context = input_covariances(model, "0", [torch.randn(200, IN)])
    layer = adapted(inject(model, create("corda", rank=4), "0", context=context))["0"]
    torch.testing.assert_close(effective_weight(layer), layer.base, rtol=1e-4, atol=1e-5)


def test_from_training_to_the_spectrum(tmp_path):
    model = quantize(net(), "0")
    W0 = base_weight(model[0])
    inject(model, BoRA(rank=4, alpha=8), ["0"], trainable=["2"])
    layer = adapted(model)["0"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    x, y = torch.randn(32, IN), torch.randint(2, (32,))
    losses = []
    with Recorder(model, tmp_path / "run") as recorder:
        for step in range(1, 13):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            recorder.step(step)
    assert losses[-1] < losses[0]
    assert torch.equal(layer.base, W0)

    run = Trajectory.open(tmp_path / "run")
    assert torch.equal(run.base("0"), W0)
    last = run.steps[-1]
    torch.testing.assert_close(run.weight("0", last), effective_weight(layer))
    update = run.update("0", last)
    torch.testing.assert_close(update, (effective_weight(layer) - W0).double(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(spectrum(update).singular_values, torch.linalg.svdvals(update), rtol=1e-6, atol=1e-6)


@pytest.fixture
def missing(monkeypatch):
    """Take the library away for good, as for one who has not installed it."""

    def take_away():
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    return take_away


def test_without_the_library(missing, tmp_path):
    model = quantize(net(), "0")
    unadapted = quantize(net(), "0")
    inject(model, BoRA(rank=2), ["0"])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(1)
    save_adapters(model, tmp_path / "adapter")
    W0 = base_weight(model[0])

    missing()
    for attempt in (
        lambda: quantize(net(), "0"),
        lambda: inject(unadapted, LoRA(rank=2), ["0"]),
        lambda: load_adapters(unadapted, tmp_path / "adapter"),
        lambda: effective_weight(unadapted[0]),
    ):
        with pytest.raises(DataError, match=r"pip install 'deltaw\[quant\]'") as raised:
            attempt()
        assert "\n" not in str(raised.value)
    run = Trajectory.open(tmp_path / "run")
    assert torch.equal(run.base("0"), W0)
    assert run.update("0", run.steps[-1]).norm() < 1e-5
    plain = load_adapters(net(), tmp_path / "adapter")
    assert torch.equal(plain[0].tensor("lora_A"), model[0].tensor("lora_A"))


def test_what_cannot_be_quantised_changes_nothing():
    model, broken = net(), net()
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="'0'"):
        quantize(broken, ["0"])
    with pytest.raises(TargetError, match="nothing_here"):
        quantize(model, ["0", "nothing_here"])
    with pytest.raises(TargetError, match="Tanh"):
        quantize(model, ["0", "1"])
    with pytest.raises(TargetError, match="no target"):
        quantize(model, [])
    with pytest.raises(OptionError, match=r"64.*48"):
        quantize(model, ["0"], block_size=48)
    with pytest.raises(OptionError, match=r"128 does not divide the 64 inputs of '0'; choose 32, 64"):
        quantize(model, ["0"], block_size=128)
    with pytest.raises(OptionError, match=r"the 48 inputs of '2'; leave this layer out"):
        quantize(model, ["0", "2"])
    with pytest.raises(DataError, match=r"float64.*model\.float\(\)"):
        quantize(net(torch.float64), ["0"])
    assert type(model[0]) is nn.Linear
    inject(model, LoRA(rank=2), ["0"])
    with pytest.raises(TargetError, match=r"already carries 'lora'.*before inject"):
        quantize(model, ["0"])
    other = quantize(net(), "0")
    with pytest.raises(TargetError, match="Linear4bit"):
        quantize(other, "0")


def test_what_cannot_be_injected_or_trained():
    model = quantize(net(), "0")
    with pytest.raises(OptionError, match=r"ft cannot train '0', which is in 4 bits"):
        inject(model, METHODS["ft"](), ["0"])
    with pytest.raises(TargetError, match=r"'0\.weight', which is in 4 bits"):
        inject(model, LoRA(rank=2), ["2"], trainable=["0"])
    assert adapted(model) == {}
    unmoved = nn.Sequential(library.nn.Linear4bit(IN, OUT, quant_type="nf4"))
    with pytest.raises(DataError, match="move the model to its device"):
        inject(unmoved, LoRA(rank=2), ["0"])
    with pytest.raises(OptionError, match="rank 49"):
        inject(model, LoRA(rank=49), ["0"])


@pytest.mark.parametrize("name", INJECTED)
def test_a_zero_matrix(name):
    model = net()
    nn.init.zeros_(model[0].weight)
    quantize(model, "0")
    layer = put_in(model, name)
    assert not layer.base.any()
    layer(torch.randn(3, IN)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)

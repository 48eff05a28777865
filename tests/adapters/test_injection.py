"""Injecting: what is matched, what is frozen, what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import (
    METHODS,
    BoRA,
    DataError,
    LoRA,
    OptionError,
    ShapeError,
    TargetError,
    adapted,
    base_weight,
    create,
    effective_weight,
    inject,
    load_adapters,
    merge,
    save_adapters,
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)


def net():
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()]), "head": nn.Linear(8, 2)})


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_globs_and_trainable():
    model = inject(net(), LoRA(rank=2), targets=["*.query", "layers.1.value"], trainable=["head", "layers.0.norm.bias"])
    assert list(adapted(model)) == ["layers.0.query", "layers.1.query", "layers.1.value"]
    expected = {f"{name}.lora_{m}" for name in adapted(model) for m in "AB"}
    assert trainable(model) == expected | {"head.weight", "head.bias", "layers.0.norm.bias"}


def test_full_fine_tuning_changes_nothing():
    model = net()
    before = trainable(model)
    inject(model, METHODS["ft"](), targets=["*.query"])
    assert trainable(model) == before
    assert adapted(model) == {}
    with pytest.raises(TargetError, match="nothing_here"):
        inject(model, METHODS["ft"](), targets=["nothing_here"])


def test_the_seed_alone_decides_the_start():
    def start(seed, noise):
        model = net()
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        inject(model, LoRA(rank=2), targets=["*.query"], seed=seed)
        assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
        return adapted(model)["layers.1.query"].lora_A

    assert torch.equal(start(3, 1), start(3, 2))
    assert not torch.equal(start(3, 1), start(4, 1))


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("*.qury", r"\*\.query"), ("layers.0.norm", "LayerNorm"), ("layers.0", "Block"), ("decoder.*", "matches nothing")],
)
def test_a_target_that_does_not_fit_is_named_with_near_names(pattern, words):
    model = net()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(TargetError, match=words) as caught:
        inject(model, LoRA(rank=2), targets=["*.value", pattern])
    assert pattern in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {name: type(module) for name, module in model.named_modules()} == before  # nothing half-done
    assert len(trainable(model)) == len(list(model.named_parameters()))


def test_a_rank_above_the_matrix_is_named():
    with pytest.raises(OptionError, match=r"rank 3 .*head"):
        inject(net(), LoRA(rank=3), targets=["head"])


def test_twice_is_refused():
    model = inject(net(), LoRA(rank=2), targets=["*.query"])
    with pytest.raises(TargetError, match="merge"):
        inject(model, BoRA(rank=2), targets=["*.query"])


def test_no_method():
    with pytest.raises(OptionError, match="method"):
        inject(net(), "lora", targets=["*.query"])


def test_subclasses_of_linear_are_refused():
    attention = nn.MultiheadAttention(8, 2)  # its out_proj is used by its weight, not by its forward
    with pytest.raises(TargetError, match="NonDynamicallyQuantizableLinear"):
        inject(attention, LoRA(rank=2), targets=["out_proj"])


def test_a_base_state_dict_still_loads():
    model, base = net(), net().state_dict()
    inject(model, LoRA(rank=2), targets=["*.query"])
    missing, unexpected = model.load_state_dict(base, strict=False)
    assert not unexpected
    assert all("lora" in name for name in missing)


def test_merge_keeps_dtype_and_mode():
    model = net().to(torch.bfloat16).eval()
    inject(model, LoRA(rank=2), targets=["*.query"])
    merge(model)
    plain = model["layers"][0].query
    assert type(plain) is nn.Linear
    assert plain.weight.dtype == torch.bfloat16
    assert not plain.training


def test_save_without_adapters(tmp_path):
    with pytest.raises(TargetError, match="inject"):
        save_adapters(net(), tmp_path / "file")


def test_load_refuses_what_does_not_fit(tmp_path):
    model = inject(net(), LoRA(rank=2), targets=["*.query"])
    file = tmp_path / "adapter.safetensors"
    save_adapters(model, file)
    with pytest.raises(OptionError, match=r"layers\.0\.query"):
        load_adapters(inject(net(), LoRA(rank=3), targets=["*.query"]), file)
    with pytest.raises(TargetError, match=r"layers\.0\.query"):
        load_adapters(inject(net(), LoRA(rank=2), targets=["*.value"]), file)
    with pytest.raises(TargetError, match=r"layers\.0\.query"):
        load_adapters(nn.Sequential(nn.Linear(2, 2)), file)
    smaller = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"query": nn.Linear(4, 4)}) for _ in range(2)])})
    with pytest.raises(ShapeError, match="lora_"):
        load_adapters(smaller, file)
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DataError, match="cut"):
        load_adapters(model, tmp_path / "cut")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other"))
    with pytest.raises(DataError, match="other"):
        load_adapters(model, tmp_path / "other")
    with pytest.raises(DataError, match="missing"):
        load_adapters(model, tmp_path / "missing")


def test_parametrized_layers():
    from torch.nn.utils import parametrize
    from torch.nn.utils.parametrizations import weight_norm

    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    layer = nn.Linear(4, 3)
    original = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Double())
    assert torch.equal(effective_weight(layer), 2 * original)
    assert torch.equal(base_weight(layer), original)
    with pytest.raises(TargetError, match="no single original"):
        base_weight(weight_norm(nn.Linear(4, 3)))


def test_the_base_of_a_parametrized_conv1d_is_turned_as_its_weight_is():
    from torch.nn.utils import parametrize

    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(3, 4)  # stores (in, out)
    original = conv1d.weight.detach().clone()
    parametrize.register_parametrization(conv1d, "weight", nn.Identity())
    assert torch.equal(base_weight(conv1d), original.T)
    assert torch.equal(effective_weight(conv1d), original.T)


def test_modules_without_a_matrix_are_named():
    with pytest.raises(TargetError, match="ReLU"):
        effective_weight(nn.ReLU())
    with pytest.raises(ShapeError, match="Conv2d"):
        effective_weight(nn.Conv2d(2, 2, 3))


def test_create_rejects_options_that_a_method_has_not():
    with pytest.raises(OptionError, match=r"sbora-fa.*axis"):
        create("sbora-fa", axis="row")


@pytest.mark.parametrize(
    "header",
    [{}, {"methods": "{"}, {"methods": '{"0": 3}'}, {"methods": "[]"}, {"methods": "{}", "same": '{"a": "b"}'}],
)
def test_a_damaged_header_is_one_clear_error(header, tmp_path):
    file = tmp_path / "adapters.safetensors"
    save_file({"x": torch.zeros(1)}, file, metadata={"format": "deltaw-adapters-1", **header})
    with pytest.raises(DataError, match="header is damaged"):
        load_adapters(nn.Sequential(nn.Linear(3, 2)), file)

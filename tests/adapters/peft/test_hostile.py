"""``load_peft`` and what strangers' files hold: never another W₀, no NaN, no raw error, and no half-changed model."""

import copy
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltaw.adapters import LoRA, VeRA, adapted, base_weight, inject, load_peft, save_peft
from deltaw.adapters.errors import DataError, DeltawError, NonFiniteError
from deltaw.adapters.peft import read

PREFIX = "base_model.model."


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))


def saved(folder, method=None, **settings):
    save_peft(inject(net(), method or LoRA(rank=2), targets=["0"]), folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def with_tensors(folder, tensors):
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {PREFIX + name: value for name, value in tensors.items()}, path)
    return folder


def refused(folder, error=DeltawError, words=None):
    """The folder is refused by one line that names it, and the model stays as it was."""
    model = net()
    model[1].requires_grad_(False)
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    with pytest.raises(error, match=words) as caught:
        load_peft(model, folder)
    assert "\n" not in str(caught.value)
    assert list(model.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]
    return str(caught.value)


@pytest.mark.parametrize("inside", ["", "base_layer."])
@pytest.mark.parametrize(("leaf", "shape"), [("weight", (4, 6)), ("bias", (4,)), ("weight", (5, 6))])
def test_the_base_of_an_adapted_layer_is_not_written_over(inside, leaf, shape, tmp_path):
    with_tensors(saved(tmp_path), {f"0.{inside}{leaf}": torch.full(shape, 666.0)})
    assert str(tmp_path) in refused(tmp_path, DataError, f"{leaf} that '0' has in this model")


def test_the_same_base_beside_the_adapter_is_read(tmp_path):
    """As PEFT saves an adapted output layer."""
    plain = net()
    with_tensors(
        saved(tmp_path), {"0.base_layer.weight": plain[0].weight.data, "0.base_layer.bias": plain[0].bias.data}
    )
    layer = adapted(load_peft(net(), tmp_path))["0"]
    assert torch.equal(base_weight(layer), plain[0].weight)
    assert torch.equal(layer.bias, plain[0].bias)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.lora_A.weight", "1.bias"])
def test_numbers_that_are_not_finite(name, value, tmp_path):
    with_tensors(saved(tmp_path), {name: torch.full((2, 6) if "lora" in name else (3,), value)})
    assert str(tmp_path) in refused(tmp_path, NonFiniteError, "NaN or infinity")


@pytest.mark.parametrize(
    "settings",
    [
        {"r": "2"}, {"r": None}, {"r": True}, {"r": [2]}, {"r": 2.5}, {"r": 0}, {"r": -1}, {"r": 1e300}, {"r": 10**40},
        {"lora_alpha": "x"}, {"lora_alpha": float("nan")}, {"lora_alpha": float("inf")}, {"lora_alpha": {}},
        {"lora_dropout": "x"}, {"lora_dropout": 7}, {"lora_dropout": -1}, {"lora_dropout": None},
        {"rank_pattern": [1]}, {"rank_pattern": "0"}, {"rank_pattern": {"0": "x"}}, {"rank_pattern": {"(": 1}},
        {"alpha_pattern": {"0": None}}, {"alpha_pattern": 3}, {"modules_to_save": "1"}, {"modules_to_save": [1]},
        {"modules_to_save": {"1": 1}}, {"peft_type": ["LORA"]}, {"peft_type": {}}, {"peft_type": None},
        {"init_lora_weights": {"a": 1}}, {"init_lora_weights": ["pissa"]}, {"bias": 3}, {"bias": ["none"]},
        {"\x1b[2J\n": 1}, {"x" * 10**5: 1}, {"use_dora": "yes"},
    ],
)  # fmt: skip
def test_settings_that_are_none(settings, tmp_path):
    assert len(refused(saved(tmp_path, **settings))) < 1000


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"3", b"[" * 10**5, b'{"a":' * 10**5, b"\xff\xfe", b'{"peft_type": "LORA"', b" " * (2**24 + 1)]
)
def test_a_configuration_that_is_none(text, tmp_path):
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(text)
    assert "adapter_config.json" in refused(tmp_path, DataError)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_is_not_waited_for(file, tmp_path):
    saved(tmp_path)
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    refused(tmp_path, DataError, "no regular file")


@pytest.mark.parametrize(
    "tensors",
    [
        {"0.lora_A.weight": torch.zeros(2, 6, dtype=torch.int64)},
        {"0.lora_A.weight": torch.zeros(2, 6, dtype=torch.bool)},
        {"0.lora_A.weight": torch.tensor(0.0)},
        {"0.lora_A.weight": torch.zeros(0, 6)},
        {"0.lora_B.weight": torch.zeros(4, 2, 1)},
        {"1.bias": torch.zeros(3, dtype=torch.int64)},
        {"0.lora_B.default.weight": torch.zeros(4, 2)},
        {".lora_A.weight": torch.zeros(2, 6)},
        {"0.0.lora_A.weight": torch.zeros(2, 6)},
        {"weight": torch.zeros(2, 6)},
        {"\x1b[2J.lora_A.weight": torch.zeros(2, 6)},
    ],
)
def test_tensors_that_are_none(tensors, tmp_path):
    assert "\x1b" not in refused(with_tensors(saved(tmp_path), tensors))


def test_shared_tensors_that_are_none(tmp_path):
    path = saved(tmp_path, VeRA(rank=2)) / "adapter_model.safetensors"
    kept = load_file(path)
    for wrong in (torch.tensor(1.0), torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, 6, 1), torch.zeros(0, 0)):
        save_file(kept | {"base_model.vera_A": wrong}, path)
        refused(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), KeyboardInterrupt()])
def test_an_interrupt_leaves_the_model_as_it_was(error, tmp_path, monkeypatch):
    def broken(*_):
        raise error

    saved(tmp_path)
    monkeypatch.setattr(read, "_put_heads", broken)
    model = net()
    modules = list(model.modules())
    with pytest.raises(type(error)):
        load_peft(model, tmp_path)
    assert list(model.modules()) == modules
    assert all(p.requires_grad for p in model.parameters())

"""Hostile files of ``load_adapters``: one error of ours each, and a model that is as it was."""

import json
from copy import deepcopy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import DeltawError, DoRA, LoRA, inject, load_adapters, save_adapters

WEIRD = [
    *(None, True, -1, 0, 10**9, 2**70, 1e308, float("inf"), float("nan"), 0.5, "", "x", "../x", "\x1b[2J", [], {}),
    *([1], [[[[]]]], {"a": {}}, "__class__", "ft", "galore", "vera", "sbora-fa", "randlora", "mora", "corda"),
]


def net():
    torch.manual_seed(0)
    return nn.ModuleDict({"query": nn.Linear(3, 4), "value": nn.Linear(3, 4), "norm": nn.LayerNorm(3)})


def fingerprint(model):
    modules = [(name, type(module)) for name, module in model.named_modules()]
    tensors = [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()]
    return modules, tensors


def same(one, other):
    return one[0] == other[0] and all(
        a[:3] == b[:3] and torch.equal(a[3], b[3]) for a, b in zip(one[1], other[1], strict=True)
    )


@pytest.fixture
def file(tmp_path):
    save_adapters(inject(net(), LoRA(rank=2), targets=["query", "value"]), tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


def contents(file):
    with safe_open(str(file), "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()  # noqa: SIM118


def changed_methods():
    entry = {"method": "lora", "options": LoRA(rank=2).options()}
    for weird in WEIRD:
        yield {"query": weird}
        yield {str(weird): entry}
        yield {"query": entry, "value": {"method": weird, "options": {}}}
        yield {"query": entry, "value": entry | {"options": weird}}
        for option in (*entry["options"], "__class__", "self"):
            yield {"query": entry, "value": {"method": "lora", "options": entry["options"] | {option: weird}}}
        for method in ("dora", "vera", "randlora", "sbora-fa"):
            yield {"query": entry, "value": {"method": method, "options": {"rank": weird}}}
    yield from ({"query": entry, name: entry} for name in ("norm", "query.base", "query.lora_A", "", "."))
    yield from ([], {}, "x", None)


@pytest.mark.parametrize("prepared", [False, True])
def test_hostile_methods(file, tmp_path, prepared):
    tensors, header = contents(file)
    good = load_adapters(net(), file)
    assert same(fingerprint(good), fingerprint(good))
    refused = 0
    for number, methods in enumerate(changed_methods()):
        hostile = tmp_path / f"{number}.safetensors"
        save_file(tensors, hostile, metadata=header | {"methods": json.dumps(methods)})
        model = inject(net(), LoRA(rank=2), targets=["query", "value"]) if prepared else net()
        before = fingerprint(model)
        try:
            load_adapters(model, hostile)
        except DeltawError as error:
            refused += 1
            assert same(before, fingerprint(model)), methods
            assert len(str(error)) < 1000  # noqa: PT017
        hostile.unlink()
    assert refused > 250


def hostile_tensors(tensors):
    name = "value.lora_B"
    for value in (
        torch.zeros(0),
        torch.zeros(2, 2),
        torch.zeros(tensors[name].shape, dtype=torch.int64),
        torch.zeros(tensors[name].shape, dtype=torch.bool),
        torch.zeros(tensors[name].shape, dtype=torch.complex64),
        torch.full(tensors[name].shape, float("nan")),
        torch.full(tensors[name].shape, float("inf")),
    ):
        yield tensors | {name: value}
    yield {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize("prepared", [False, True])
def test_hostile_tensors(file, tmp_path, prepared):
    tensors, header = contents(file)
    for changed in hostile_tensors(tensors):
        save_file(changed, tmp_path / "hostile", metadata=header)
        model = inject(net(), LoRA(rank=2), targets=["query", "value"]) if prepared else net()
        before = fingerprint(model)
        with pytest.raises(DeltawError):
            load_adapters(model, tmp_path / "hostile")
        assert same(before, fingerprint(model))


def test_hostile_headers(file, tmp_path):
    tensors, header = contents(file)
    for more in (
        {"methods": "[" * 100_000},
        {"methods": '{"query": 1, "query": 2}'},
        {"same": '{"query.x": "nothing"}'},
        {"same": '{"query.x": {}}'},
        {"same": "[[1]]"},
        {"same": "9" * 10_000},
        {"format": "\x1b[2J" * 1000},
    ):
        save_file(tensors, tmp_path / "hostile", metadata=header | more)
        with pytest.raises(DeltawError) as told:
            load_adapters(net(), tmp_path / "hostile")
        assert len(str(told.value)) < 1000


def test_another_method_than_the_models_is_refused_before_anything_is_read_into_it(file):
    model = inject(net(), {"query": LoRA(rank=2), "value": DoRA(rank=2)})
    before = deepcopy(model.state_dict())
    with pytest.raises(DeltawError, match="was saved as"):
        load_adapters(model, file)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

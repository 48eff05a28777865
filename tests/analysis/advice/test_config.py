"""PEFT's settings from advice: PEFT itself gives every module the rank and alpha that were meant, and no other."""

import json

import pandas as pd
import pytest
from torch import nn

from deltaw.adapters import DataError, OptionError
from deltaw.analysis import lora_config, write_advice
from deltaw.analysis.advice.config import Advised, read_advice

peft = pytest.importorskip("peft", minversion="0.21")


class Net(nn.Module):
    """Names that are ends of each other, begin alike, or mean something in an expression."""

    def __init__(self):
        super().__init__()

        def block():
            return nn.ModuleDict(
                {"query": nn.Linear(16, 16), "query_2": nn.Linear(16, 16), "qxuery": nn.Linear(16, 16)}
            )

        self.layer = nn.ModuleList([block() for _ in range(12)])
        self.decoder = nn.ModuleDict({"layer": nn.ModuleList([block() for _ in range(3)])})
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(x)


def table(ranks, scaling=2.0, stabilized=False, **more):
    names = list(ranks)
    root = [rank**0.5 if stabilized else rank for rank in ranks.values()]
    return pd.DataFrame(
        {"run": "r", "step": 1, "module": names, "rank": list(ranks.values()), "stabilized": stabilized}
        | {"alpha": [scaling * k for k in root], "hardly": False, "parameters": 1}
        | more
    )


def layers(config):
    model = peft.get_peft_model(Net(), peft.LoraConfig(**config))
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


@pytest.mark.parametrize("stabilized", [False, True])
def test_each_module_and_no_other(stabilized):
    every = [name for name, module in Net().named_modules() if isinstance(module, nn.Linear) and name != "head"]
    ranks = {name: 1 + (7 * place) % 5 for place, name in enumerate(every)}
    config = lora_config(table(ranks, stabilized=stabilized))
    assert {name: rank for name, (rank, _) in layers(config).items()} == ranks
    assert all(scale == pytest.approx(2.0) for _, scale in layers(config).values())
    json.dumps(config)


def test_dropped_modules_get_none():
    """One dropped module is the end of another's name, so that names alone would not tell them apart."""
    ranks = {"layer.1.query": 2, "layer.11.query": 3, "decoder.layer.1.query": 0, "layer.2.query": 2}
    config = lora_config(table(ranks))
    assert isinstance(config["target_modules"], str)
    assert {name: rank for name, (rank, _) in layers(config).items()} == {k: v for k, v in ranks.items() if v}


def test_a_name_is_no_pattern():
    """The dots of a name are dots: "layer.1.query" is not "layer.1xquery"."""
    config = lora_config(table({"layer.1.query": 3, "layer.2.query": 2, "layer.2.qxuery": 2}))
    assert layers(config)["layer.1.query"][0] == 3
    assert layers(config)["layer.2.qxuery"][0] == 2


def test_a_file_and_back(tmp_path):
    ranks = {"layer.1.query": 3, "layer.2.query": 2, "layer.3.query": 0}
    said = write_advice(table(ranks, scaling=1.5), tmp_path / "new" / "advice.json")
    assert read_advice(tmp_path / "new" / "advice.json") == {
        "layer.1.query": Advised(3, 4.5),
        "layer.2.query": Advised(2, 3.0),
    }
    assert said["dropped"] == ["layer.3.query"]
    assert json.loads((tmp_path / "new" / "advice.json").read_text()) == said
    assert peft.LoraConfig(**said["lora_config"]).rank_pattern == said["lora_config"]["rank_pattern"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"deltaw_advice": 2, "modules": {"a": {"rank": 1, "alpha": 1}}}',
        '{"deltaw_advice": 1, "modules": {"a": {"rank": 0, "alpha": 1}}}',
        '{"deltaw_advice": 1, "modules": {"a": {"rank": 1, "alpha": NaN}}}',
        '{"deltaw_advice": 1, "modules": {"a": 3}}',
    ],
)
def test_a_file_that_is_none(tmp_path, text):
    (tmp_path / "advice.json").write_text(text)
    with pytest.raises(DataError, match=r"advice\.json"):
        read_advice(tmp_path / "advice.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_advice(tmp_path / "none.json")


def test_what_peft_cannot_hold():
    with pytest.raises(OptionError, match="all ranks are 0"):
        lora_config(table({"a": 0}))
    mixed = pd.concat([table({"a": 1}), table({"b": 1}, stabilized=True)])
    with pytest.raises(OptionError, match="α/√r"):
        lora_config(mixed)
    with pytest.raises(OptionError, match="2 runs"):
        lora_config(table({"a": 1, "b": 2}, run=["r", "q"]))


def test_uniform_ranks_have_no_pattern():
    config = lora_config(table({"a.query": 4, "b.query": 4}))
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (4, 8, {}, {})

"""``deltaw advise`` and ``deltaw resize``: their tables, files and mistakes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters import LoRA, adapted, inject, save_peft
from deltaw.analysis import Trajectory
from deltaw.cli import main
from deltaw.trainers import Recorder


def model():
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({"query": torch.nn.Linear(12, 8), "value": torch.nn.Linear(12, 12)})
    inject(net, LoRA(rank=4, alpha=8), targets=["*"], seed=0)
    with torch.no_grad():
        for strength, layer in zip((1.0, 1e-4), adapted(net).values(), strict=True):
            layer.tensor("lora_B").copy_(strength * torch.randn(layer.out_features, 4) * torch.logspace(0, -2, 4))
    return net


@pytest.fixture
def run(tmp_path):
    with Recorder(model(), tmp_path / "run") as recorder:
        recorder.step(5)
    return str(tmp_path / "run")


@pytest.fixture
def adapter(tmp_path):
    save_peft(model(), tmp_path / "adapter")
    return str(tmp_path / "adapter")


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_advice_of_a_run_and_of_an_adapter(run, adapter, tmp_path, capsys):
    for path in (run, adapter):
        code, out, _ = call(capsys, "advise", path, "--energy", "0.9", "-o", tmp_path / "table.csv")
        assert code == 0
        assert "1 hardly moved: value" in out
        assert '"rank_pattern"' in out
        code, out, _ = call(capsys, "advise", path, "--energy", "0.9", "--json")
        found = json.loads(out)
        wanted = Trajectory.open(path).advice(at=0.9)
        assert [row["rank"] for row in found["modules"]] == wanted["rank"].tolist()
        assert found["lora_config"]["target_modules"] == ["query", "value"]
    assert "against_median" in (tmp_path / "table.csv").read_text()


def test_advice_is_a_file_that_resize_takes(adapter, tmp_path, capsys):
    code, out, _ = call(capsys, "advise", adapter, "--rule", "sv_ratio", "--at", "3", "--advice", tmp_path / "a.json")
    assert code == 0
    assert "rank_pattern" not in out
    code, out, _ = call(capsys, "resize", adapter, "-o", tmp_path / "small", "--advice", tmp_path / "a.json")
    assert code == 0
    assert "error, ‖·‖_F" in out
    code, out, _ = call(capsys, "resize", adapter, "-o", tmp_path / "other", "--rank", "2", "--json")
    assert [row["rank"] for row in json.loads(out)["modules"]] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["advise", "{}", "--energy", "0.9", "--rule", "stable"], "--energy is --rule energy"),
        (["advise", "{}", "--parameters", "many"], "no whole number, and not 'same'"),
        (["advise", "{}", "--parameters", "same", "--rule", "stable"], "in the place of a rule"),
        (["advise", "{}", "--spread", "need"], "give both or none"),
        (["advise", "{}", "--energy", "3"], "at is 3.0"),
        (["resize", "{}", "-o", "new"], "nothing is given; give one of rank"),
        (["resize", "{}", "-o", "new", "--rank", "9"], "--grow"),
        (["resize", "{}", "-o", "new", "--parameters", "same"], "give a smaller number"),
        (
            ["train", "cola", "--method", "lora", "--rank", "4", "--advice", "{}/adapter_config.json", "--out", "new"],
            "contradict",
        ),
    ],
)
def test_a_mistake_is_one_line(adapter, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *[a.format(adapter) for a in arguments])
    assert code == 2
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("deltaw:")]) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["lora", "diff"])
def test_advice_of_another_tool_s_adapter(kind, tmp_path, capsys):
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    file = {f"{layer}.lora_down.weight": torch.randn(3, 8), f"{layer}.lora_up.weight": torch.randn(6, 3)}
    if kind == "diff":  # it has no rank of its own
        file[f"{layer.replace('in', 'out')}.diff"] = torch.randn(6, 8)
    save_file(file, tmp_path / "a.safetensors")
    code, out, _ = call(capsys, "advise", tmp_path / "a.safetensors", "--energy", "0.9")
    assert code == 0
    assert (f"parameters of {3 * (6 + 8)}, " in out) == (kind == "lora")
    if kind == "lora":
        code, out, _ = call(capsys, "resize", tmp_path / "a.safetensors", "-o", tmp_path / "r", "--rank", "2", "--json")
        row = json.loads(out)["modules"][0]
        assert (code, row["rank_before"], row["rank"]) == (0, 3, 2)

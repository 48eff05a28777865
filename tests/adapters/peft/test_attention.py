"""PEFT's LoRA on ``nn.MultiheadAttention``: read as PEFT's forward has it, and recorded the same."""

import json

import pytest
import torch
from torch import nn

from deltaw.adapters import TargetError, load_peft
from deltaw.analysis import Trajectory
from deltaw.trainers import Recorder

peft = pytest.importorskip("peft")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(self.attn(x, x, x)[0])


def net():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


def adapted():
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["attn", "fc"],
        init_lora_weights=False,
        alpha_pattern={"1.attn": 3},
    )
    return peft.get_peft_model(net(), config)


def test_read_as_in_pefts_forward(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    plain = net()
    run = Trajectory.open(tmp_path, base=plain)
    blocks = [[m for m in run.modules if m.startswith(f"{k}.")] for k in (0, 1)]
    kinds = ["attn.in_proj.query", "attn.in_proj.key", "attn.in_proj.value", "attn.out_proj", "fc"]
    assert [sorted(block) for block in blocks] == [sorted(f"{k}.{kind}" for kind in kinds) for k in (0, 1)]
    x = torch.randn(3, 5, 8)
    wanted = model(x)
    with torch.no_grad():
        for k in (0, 1):
            rows = [run.weight(f"{k}.{kind}", 0) for kind in kinds[:3]]
            plain[k].attn.in_proj_weight.copy_(torch.cat(rows))
            plain[k].attn.out_proj.weight.copy_(run.weight(f"{k}.attn.out_proj", 0))
            plain[k].fc.weight.copy_(run.weight(f"{k}.fc", 0))
    torch.testing.assert_close(plain(x), wanted, rtol=1e-5, atol=1e-5)
    U, V = run.factors("0.attn.out_proj", 0)
    torch.testing.assert_close(U @ V, run.update("0.attn.out_proj", 0, torch.float32), rtol=1e-5, atol=1e-6)
    for name in run.modules:  # a part of in_proj, or added twice
        U, V, scaling = run.source.scaled_factors(name, 0)
        torch.testing.assert_close(scaling * U.double() @ V.double(), run.update(name, 0), rtol=1e-12, atol=1e-14)


def test_the_recorder_has_what_the_reader_has(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path / "saved")
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
    saved, run = Trajectory.open(tmp_path / "saved", base=net(), split=False), Trajectory.open(tmp_path / "run")
    assert sorted(run.modules) == sorted(saved.modules)
    assert len(run.modules) == 6
    for module in run.modules:
        torch.testing.assert_close(run.weight(module, 0), saved.weight(module, 0), rtol=1e-5, atol=1e-6)


def test_load_peft_refuses_it_by_name(tmp_path):
    adapted().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "modules_to_save": None}))
    with pytest.raises(TargetError, match="MultiheadAttention"):
        load_peft(net(), tmp_path)

"""Recording ``nn.MultiheadAttention``: plain, and under PEFT's LoRA, whose update of out_proj is added twice."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deltaw.adapters import RecordError, TargetError
from deltaw.analysis import Trajectory
from deltaw.trainers import Recorder


class Block(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(self.attn(x, x, x)[0])


def net(**options):
    torch.manual_seed(0)
    return nn.Sequential(Block(**options), Block(**options))


def adapted(dtype=torch.float32, **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["attn", "fc"], alpha_pattern={"1.attn": 3}, **options)
    return peft.get_peft_model(net().to(dtype), config)


def train(model, recorder, steps, dtype=torch.float32, lr=0.02):
    """Yield after every step that is recorded."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in steps:
        recorder.step(step)
        yield step
        model(torch.randn(3, 5, 8, dtype=dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


MATRICES = {"attn.in_proj": "attn.in_proj_weight", "attn.out_proj": "attn.out_proj.weight", "fc": "fc.weight"}


@pytest.mark.parametrize("rank_stabilized", [False, True], ids=["lora", "rslora"])
def test_peft_is_recorded_as_it_merges(tmp_path, rank_stabilized):
    model = adapted(use_rslora=rank_stabilized)
    merged, outputs, x = {}, {}, torch.randn(2, 3, 8)
    base = {name: value.clone() for name, value in net().state_dict().items()}
    with Recorder(model, tmp_path / "run") as recorder:
        for step in train(model, recorder, range(4)):
            outputs[step] = model(x).detach()
            merged[step] = copy.deepcopy(model).merge_and_unload().state_dict()
    run = Trajectory.open(tmp_path / "run")
    names = [f"{k}.{name}" for k in (0, 1) for name in MATRICES]
    assert run.modules == names
    assert run.method == ("rslora" if rank_stabilized else "lora")
    for step in range(4):
        plain = net()
        for k in (0, 1):
            for name, parameter in MATRICES.items():
                module = f"{k}.{name}"
                W = run.weight(module, step)
                torch.testing.assert_close(W.float(), merged[step][f"{k}.{parameter}"], rtol=1e-5, atol=1e-6)
                plain.get_parameter(f"{k}.{parameter}").data.copy_(W)
                assert torch.equal(run.base(module).float(), base[f"{k}.{parameter}"])
                U, V = run.factors(module, step)
                torch.testing.assert_close((U @ V).double(), run.update(module, step), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(plain(x), outputs[step], rtol=1e-5, atol=1e-6)
    assert float(run.update("0.attn.out_proj", 3).norm()) > 0.01


def test_a_scaling_set_by_hand_and_16_bits_give_the_whole_weight(tmp_path):
    model = adapted()
    for module in model.modules():
        if hasattr(module, "scaling") and "default" in module.scaling:
            module.scaling["default"] *= 1.5
    narrow = adapted(torch.bfloat16)
    for name, own in (("hand", model), ("narrow", narrow)):
        dtype = torch.float32 if name == "hand" else torch.bfloat16
        merged = {}
        with Recorder(own, tmp_path / name, modules=["*_proj"], method="any") as recorder:
            for step in train(own, recorder, range(3), dtype):
                merged[step] = copy.deepcopy(own).merge_and_unload().state_dict()
        run = Trajectory.open(tmp_path / name)
        assert len(run.modules) == 4
        tolerance = 1e-6 if name == "hand" else 2**-7
        for step in range(3):
            for part in ("in_proj", "out_proj"):
                wanted = merged[step][f"0.{MATRICES[f'attn.{part}']}"].float()
                found = run.weight(f"0.attn.{part}", step).float()
                assert float((found - wanted).norm()) <= tolerance * float(wanted.norm())


def test_the_roundings_of_many_forward_passes_are_no_moved_base_but_a_merge_is(tmp_path):
    model = adapted()
    with Recorder(model, tmp_path / "run", modules=["*_proj"], when=lambda step: step % 50 == 0) as recorder:
        for _ in train(model, recorder, range(101), lr=1e-3):
            pass
        assert recorder.steps == [0, 50, 100]
        attention = model.base_model.model[0].attn
        held = attention.base_layer.in_proj_weight
        passes = 20 * torch.finfo(torch.float32).eps * float(held.norm())  # as some 300,000 steps leave
        noise = torch.randn_like(held)
        with torch.no_grad():
            held += passes * noise / noise.norm()
        recorder.record(150)
        moved = attention.get_delta_weight("default").detach()
        with torch.no_grad():
            attention.base_layer.in_proj_weight += 0.05 * moved.norm() * noise / noise.norm()
        with pytest.raises(RecordError, match=r"0\.attn\.in_proj"):
            recorder.record(200)
        with torch.no_grad():
            attention.base_layer.in_proj_weight += moved - 0.05 * moved.norm() * noise / noise.norm()
            attention.lora_B["default"].weight.zero_()
        with pytest.raises(RecordError, match=r"0\.attn\.in_proj.*ReLoRA"):
            recorder.record(200)


def test_resumed_behind_forward_passes_but_not_with_another_base(tmp_path):
    model = adapted()
    with Recorder(model, tmp_path / "run") as recorder:
        list(train(model, recorder, range(3)))
    with Recorder(model, tmp_path / "run", resume=True) as recorder:
        list(train(model, recorder, range(3, 5)))
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 1, 2, 3, 4]
    with torch.no_grad():
        model.base_model.model[1].attn.base_layer.in_proj_weight.mul_(1.1)
    with Recorder(model, tmp_path / "run", resume=True) as recorder, pytest.raises(RecordError, match=r"attn\.in_proj"):
        recorder.step(5)


def test_merged_is_refused_at_the_start_and_goes_on_within(tmp_path):
    model = adapted(init_lora_weights=False)
    with Recorder(model, tmp_path / "run", modules=["*_proj"]) as recorder:
        recorder.step(0)
        for block in model.base_model.model:  # PEFT's merge_adapter warns, as out_proj is merged with its attention
            block.attn.merge()
        recorder.step(1)
        for block in model.base_model.model:
            block.attn.unmerge()
        recorder.step(2)
    run = Trajectory.open(tmp_path / "run")
    assert torch.equal(run.weight(run.modules[1], 0), run.weight(run.modules[1], 1))
    model.base_model.model[0].attn.merge()
    with pytest.raises(TargetError, match="merged"), Recorder(model, tmp_path / "other", modules=["*.attn.*"]):
        pass


def test_plain_attention_is_recorded_with_all_linear_layers(tmp_path):
    model = net()
    states = {}
    with Recorder(model, tmp_path / "run") as recorder:
        for step in train(model, recorder, range(3)):
            states[step] = {name: value.clone() for name, value in model.state_dict().items()}
    run = Trajectory.open(tmp_path / "run")
    assert run.modules == [f"{k}.{name}" for k in (0, 1) for name in MATRICES]
    for step, state in states.items():
        for name, parameter in MATRICES.items():
            assert torch.equal(run.weight(f"1.{name}", step).float(), state[f"1.{parameter}"])
    with Recorder(model, tmp_path / "run", resume=True) as recorder:
        recorder.step(3)
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2, 3]


def test_query_key_and_value_of_other_sizes_are_recorded_apart(tmp_path):
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, kdim=4, vdim=6)})
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
    run = Trajectory.open(tmp_path / "run")
    assert run.modules == [f"attn.{kind}_proj" for kind in ("q", "k", "v", "out")]
    assert torch.equal(run.weight("attn.k_proj", 0).float(), model["attn"].k_proj_weight)


def test_live_numbers_of_an_attention(tmp_path):
    model = adapted(init_lora_weights=False)
    with Recorder(model, tmp_path / "run", live=True) as recorder:
        found = recorder.step(0)
    run = Trajectory.open(tmp_path / "run")
    shares = [float(run.update(m, 0).norm() / run.base(m).double().norm()) for m in run.modules if "out_proj" in m]
    assert found["update/output"] == pytest.approx(sum(shares) / 2, rel=1e-6)


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("kind", ["fsdp1 original", "fsdp1 flat", "fsdp2"])
def test_sharded_attention_is_recorded_whole(tmp_path, in_two, kind):
    fsdp = pytest.importorskip("torch.distributed.fsdp")

    def work(rank, path):
        model, cpu = net(), torch.device("cpu")
        if kind == "fsdp2":
            mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
            for block in (*model, model):
                fsdp.fully_shard(block, mesh=mesh)
        else:
            wrap = functools.partial(fsdp.wrap.transformer_auto_wrap_policy, transformer_layer_cls={Block})
            model = fsdp.FullyShardedDataParallel(
                model, auto_wrap_policy=wrap, use_orig_params=kind == "fsdp1 original", device_id=cpu
            )
        with Recorder(model, path / "run") as recorder:
            recorder.step(0)
        return recorder.steps

    assert in_two(work, tmp_path) == ([0], [0])
    run, wanted = Trajectory.open(tmp_path / "run"), net()
    assert run.modules == [f"{k}.{name}" for k in (0, 1) for name in MATRICES]
    for k in (0, 1):
        for name, parameter in MATRICES.items():
            assert torch.equal(run.weight(f"{k}.{name}", 0).float(), wanted.get_parameter(f"{k}.{parameter}"))

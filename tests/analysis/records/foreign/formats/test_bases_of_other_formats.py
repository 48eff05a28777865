"""W₀ of an adapter's layers where the base has other names, or its matrices in other pieces."""

import json

import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters import RecordError
from deltaw.adapters.errors import DeltawWarning
from deltaw.analysis import Trajectory
from deltaw.analysis.records.foreign.formats.naming import Names, canonical, dotted

SIDE, RANK = 8, 2
# Layers of SD's UNet: diffusers' name, and the authors'.
UNET = {
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q": "input_blocks.2.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0": (
        "input_blocks.4.1.transformer_blocks.1.attn2.to_out.0"
    ),
    "down_blocks.1.attentions.0.proj_in": "input_blocks.4.1.proj_in",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.2.resnets.1.conv1": "input_blocks.8.0.in_layers.2",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": "middle_block.1.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": "output_blocks.3.1.transformer_blocks.0.ff.net.2",
    "up_blocks.0.resnets.2.time_emb_proj": "output_blocks.2.0.emb_layers.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "time_embedding.linear_1": "time_embed.0",
    "conv_in": "input_blocks.0.0",
}
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(name, down="lora_down.weight", up="lora_up.weight", out=SIDE, into=SIDE):
    return {f"{name}.{down}": drawn(RANK, into, seed=1), f"{name}.{up}": drawn(out, RANK, seed=2)}


def saved(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def adapted(names, prefix):
    return {k: v for name in names for k, v in pair(f"{prefix}{name.replace('.', '_')}").items()}


@pytest.mark.parametrize("adapter", ["diffusers", "authors"])
@pytest.mark.parametrize("base", ["pipeline", "unet", "one file"])
def test_stable_diffusion(adapter, base, tmp_path):
    names = list(UNET) if adapter == "diffusers" else list(UNET.values())
    file = adapted(names, "lora_unet_") | adapted([TEXT], "lora_te1_") | adapted([TEXT], "lora_te2_")
    whole = {name: drawn(SIDE, SIDE, seed=k + 10) for k, name in enumerate(UNET)}
    one, two = drawn(SIDE, SIDE, seed=5), drawn(SIDE, SIDE, seed=6)
    if base == "pipeline":
        saved(tmp_path / "base/unet/diffusion_pytorch_model.safetensors", {f"{n}.weight": W for n, W in whole.items()})
        saved(tmp_path / "base/text_encoder/model.safetensors", {f"{TEXT}.weight": one})
        saved(tmp_path / "base/text_encoder_2/model.safetensors", {f"{TEXT}.weight": two})
        (tmp_path / "base/model_index.json").write_text("{}")
        path = tmp_path / "base"
    elif base == "unet":
        path = saved(tmp_path / "unet.safetensors", {f"{n}.weight": W for n, W in whole.items()})
    else:
        tensors = {f"model.diffusion_model.{UNET[n]}.weight": W for n, W in whole.items()}
        tensors[f"conditioner.embedders.0.transformer.{TEXT}.weight"] = one
        clip = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
        tensors[clip] = torch.cat([two, drawn(2 * SIDE, SIDE)])
        path = saved(tmp_path / "one.safetensors", tensors)
    run = Trajectory.open(saved(tmp_path / "a.safetensors", file), base=path)
    assert len(run.modules) == len(UNET) + 2
    for (name, W), stored in zip(whole.items(), names, strict=True):
        shown = dotted(f"lora_unet_{stored.replace('.', '_')}", Names(()))
        assert shown == f"unet.{stored}"
        assert torch.equal(run.base(shown), W), name
    if base == "unet":
        with pytest.raises(RecordError, match="no matrix"):
            run.base(f"text_encoder.{TEXT}")
        with pytest.warns(DeltawWarning, match="2 modules are left out, text_encoder"):
            table = run.changes("base")
        assert len(table["module"].unique()) == len(UNET)
    else:
        assert torch.equal(run.base(f"text_encoder.{TEXT}"), one)
        assert torch.equal(run.base(f"text_encoder_2.{TEXT}"), two)


def test_kernels_are_matrices_and_embeddings_stay(tmp_path):
    W, name = drawn(SIDE, 4, 3, 3), "down_blocks.0.resnets.0.conv1"
    file = {
        f"lora_unet_{name.replace('.', '_')}.lora_down.weight": drawn(RANK, 4, 3, 3, seed=1),
        f"lora_unet_{name.replace('.', '_')}.lora_up.weight": drawn(SIDE, RANK, 1, 1, seed=2),
    }
    base = saved(tmp_path / "base.safetensors", {f"{name}.weight": W})
    run = Trajectory.open(saved(tmp_path / "a.safetensors", file), base=base)
    down, up = file.values()
    expected = (W + torch.einsum("or,rijk->oijk", up[..., 0, 0], down)).flatten(1)
    torch.testing.assert_close(run.weight(f"unet.{name}", 0), expected)
    table = run.changes("base", axes=("row",))
    rows = (expected.double().norm(dim=1) - W.flatten(1).double().norm(dim=1)).abs().mean()
    assert table["delta_m"].iloc[0] == pytest.approx(float(rows), rel=1e-5)


FLUX = {  # by its authors, and where diffusers has it
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.{x}" for x in ("to_q", "to_k", "to_v")],
    "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
    "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
    "double_blocks.0.txt_mlp.2": ["transformer_blocks.0.ff_context.net.2"],
    "single_blocks.3.linear2": ["single_transformer_blocks.3.proj_out"],
    "single_blocks.3.linear1": [
        f"single_transformer_blocks.3.{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ],
}


def flux():
    own, theirs = {}, {}
    for k, (name, parts) in enumerate(FLUX.items()):
        pieces = [
            drawn(SIDE * (3 if "mlp" in part and len(parts) == 4 else 1), SIDE, seed=9 * k + n)
            for n, part in enumerate(parts)
        ]
        own[name] = torch.cat(pieces)
        theirs |= dict(zip(parts, pieces, strict=True))
    return own, theirs


@pytest.mark.parametrize("base", ["authors", "diffusers"])
def test_flux(base, tmp_path):
    own, theirs = flux()
    given = saved(
        tmp_path / "base.safetensors", {f"{n}.weight": W for n, W in (own if base == "authors" else theirs).items()}
    )
    file = {k: v for name, W in own.items() for k, v in pair(f"lora_unet_{name.replace('.', '_')}", out=len(W)).items()}
    run = Trajectory.open(saved(tmp_path / "kohya.safetensors", file), base=given, split=False)
    for name, W in own.items():
        assert torch.equal(run.base(f"transformer.{name}"), W)
    file = {
        k: v
        for name, W in theirs.items()
        for k, v in pair(f"transformer.{name}", "lora_A.weight", "lora_B.weight", len(W)).items()
    }
    run = Trajectory.open(saved(tmp_path / "peft.safetensors", file), base=given, split=False)
    for name, W in theirs.items():
        assert torch.equal(run.base(f"transformer.{name}"), W), name


def test_litgpt_and_a_model_of_transformers(tmp_path):
    parts = {f"model.layers.0.self_attn.{x}_proj": drawn(n, SIDE, seed=n) for x, n in (("q", 8), ("k", 4), ("v", 4))}
    parts["model.layers.0.mlp.gate_proj"] = drawn(12, SIDE)
    base = saved(tmp_path / "base.safetensors", {f"{name}.weight": W for name, W in parts.items()})
    folder = tmp_path / "final"
    folder.mkdir()
    name, fc = "transformer.h.0.attn.qkv", "transformer.h.0.mlp.fc_1"
    tensors = pair(name, "lora_A", "lora_B", 16) | pair(fc, "lora_A", "lora_B", 12)
    torch.save({"model": tensors}, folder / "lit_model.pth.lora")
    (folder / "hyperparameters.yaml").write_text("lora_alpha: 2\n")
    run = Trajectory.open(folder, base=base, split=False)
    assert torch.equal(run.base(name), torch.cat(list(parts.values())[:3]))
    assert torch.equal(run.base(fc), parts["model.layers.0.mlp.gate_proj"])


def test_a_model_and_another_tool_s_adapter_are_a_pair(tmp_path):
    W, q = drawn(SIDE, SIDE), "model.layers.0.self_attn.q_proj"
    base = saved(tmp_path / "base.safetensors", {f"{q}.weight": W})
    tensors = {f"{q}.lora_a": drawn(SIDE, RANK), f"{q}.lora_b": drawn(RANK, SIDE)}
    saved(tmp_path / "mlx/adapters.safetensors", tensors)
    settings = {"fine_tune_type": "lora", "lora_parameters": {"scale": 2.0}}
    (tmp_path / "mlx/adapter_config.json").write_text(json.dumps(settings))
    for after in (tmp_path / "mlx", tmp_path / "mlx/adapters.safetensors"):
        run = Trajectory.from_pair(base, after)
        torch.testing.assert_close(
            run.weight(q, run.steps[-1]), W + 2 * (tensors[f"{q}.lora_a"] @ tensors[f"{q}.lora_b"]).T
        )


@pytest.mark.parametrize("part", ["unet.", "lora_unet_", "_0", "a_", "attn1_", "input_blocks.1."])
def test_long_names_take_linear_time(part):
    name = part * (4000 // len(part))
    dotted(name, Names([name]))
    canonical(name)


WAN = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.0.cross_attn.o": "blocks.0.attn2.to_out.0",
    "blocks.0.cross_attn.k_img": "blocks.0.attn2.add_k_proj",
    "blocks.1.ffn.0": "blocks.1.ffn.net.0.proj",
    "blocks.1.ffn.2": "blocks.1.ffn.net.2",
}


@pytest.mark.parametrize("prefix", ["diffusion_model.", "pipe.dit.", "lora_unet__", "transformer."])
@pytest.mark.parametrize("base", ["authors", "diffusers"])
def test_wan(prefix, base, tmp_path):
    flat = "." not in prefix
    names = WAN.values() if prefix == "transformer." else WAN
    file = {
        key: value for name in names for key, value in pair(prefix + (name.replace(".", "_") if flat else name)).items()
    }
    weights = {f"{name}.weight": drawn(SIDE, SIDE, seed=k) for k, name in enumerate(WAN)}
    if base == "diffusers":
        weights = dict(zip((f"{name}.weight" for name in WAN.values()), weights.values(), strict=True))
    run = Trajectory.open(saved(tmp_path / "a.safetensors", file), base=weights)
    own = "unet." if flat else prefix
    for k, name in enumerate(names):
        torch.testing.assert_close(run.base(own + name), drawn(SIDE, SIDE, seed=k))


def test_hunyuan_video(tmp_path):
    file = pair("transformer.transformer_blocks.0.attn.to_k", "lora_A.weight", "lora_B.weight")
    qkv = drawn(3 * SIDE, SIDE, seed=3)
    run = Trajectory.open(saved(tmp_path / "a.safetensors", file), base={"double_blocks.0.img_attn_qkv.weight": qkv})
    torch.testing.assert_close(run.base("transformer.transformer_blocks.0.attn.to_k"), qkv[SIDE : 2 * SIDE])

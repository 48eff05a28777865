"""Adapters of other tools, on files of their structure: ΔW and W' by each tool's own arithmetic, written out here."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from deltaw.adapters import RecordError
from deltaw.analysis import Trajectory

UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PLAIN = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT, INTO, RANK = 12, 8, 3


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kernel(*shape, seed=9):
    return {"down_blocks.0.resnets.0.conv1.weight": drawn(*shape, seed=seed)}


def close(found, expected):
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)


def saved(tmp_path, tensors, name="a.safetensors", metadata=None):
    tmp_path.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / name, metadata=metadata)
    return tmp_path / name


def of_conv(base, x_shape=(2, INTO, 5, 5)):
    """What a convolution does, to hold a flattened kernel to: W as (out, in, 3, 3)."""
    x = drawn(*x_shape, seed=77)
    return lambda W: F.conv2d(x, W.reshape(base.shape), padding=1)


# LyCORIS and kohya: roles and shapes of a layer, and ΔW by the tool's formula. s = α / r.
def core(t, a, b):
    return torch.einsum("ijkl,ip,jq->pqkl", t, a, b).contiguous()


def lora(t):
    return t["lora_up.weight"].flatten(1) @ t["lora_down.weight"].flatten(1)


CASES = {
    "linear": ({"lora_down.weight": (RANK, INTO), "lora_up.weight": (OUT, RANK)}, lora),
    "conv": ({"lora_down.weight": (RANK, INTO, 3, 3), "lora_up.weight": (OUT, RANK, 1, 1)}, lora),
    "conv 1×1": ({"lora_down.weight": (RANK, INTO, 1, 1), "lora_up.weight": (OUT, RANK, 1, 1)}, lora),
    "conv 1-D": ({"lora_down.weight": (RANK, INTO, 3), "lora_up.weight": (OUT, RANK, 1)}, lora),
    "conv with a core": (
        {
            "lora_down.weight": (RANK, INTO, 1, 1),
            "lora_up.weight": (OUT, RANK, 1, 1),
            "lora_mid.weight": (RANK, RANK, 3, 3),
        },
        lambda t: torch.einsum(
            "pi,ijkl,jq->pqkl",
            t["lora_up.weight"][..., 0, 0],
            t["lora_mid.weight"],
            t["lora_down.weight"][..., 0, 0],
        ).flatten(1),
    ),
    "loha": (
        {"hada_w1_a": (OUT, RANK), "hada_w1_b": (RANK, INTO), "hada_w2_a": (OUT, RANK), "hada_w2_b": (RANK, INTO)},
        lambda t: (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]),
    ),
    "loha with cores": (
        {
            "hada_w1_a": (RANK, OUT), "hada_w1_b": (RANK, INTO), "hada_t1": (RANK, RANK, 3, 3),
            "hada_w2_a": (RANK, OUT), "hada_w2_b": (RANK, INTO), "hada_t2": (RANK, RANK, 3, 3),
        },
        lambda t: (
            core(t["hada_t1"], t["hada_w1_a"], t["hada_w1_b"]) * core(t["hada_t2"], t["hada_w2_a"], t["hada_w2_b"])
        ).flatten(1),
    ),
    "lokr": (
        {"lokr_w1": (3, 2), "lokr_w2_a": (4, RANK), "lokr_w2_b": (RANK, 4)},
        lambda t: torch.kron(t["lokr_w1"], t["lokr_w2_a"] @ t["lokr_w2_b"]),
    ),
    "lokr of two products": (
        {"lokr_w1_a": (3, RANK), "lokr_w1_b": (RANK, 2), "lokr_w2_a": (4, RANK), "lokr_w2_b": (RANK, 4)},
        lambda t: torch.kron(t["lokr_w1_a"] @ t["lokr_w1_b"], t["lokr_w2_a"] @ t["lokr_w2_b"]),
    ),
    "lokr of a kernel": (
        {"lokr_w1": (3, 2), "lokr_w2": (4, 4, 3, 3), "r": ()},
        lambda t: torch.kron(t["lokr_w1"][..., None, None], t["lokr_w2"]).flatten(1),
    ),
    "lokr of a kernel's product": (  # LyCORIS: w2_a w2_b as (c, d, k, k), then the Kronecker product
        {"lokr_w1": (3, 2), "lokr_w2_a": (4, RANK), "lokr_w2_b": (RANK, 4 * 9)},
        lambda t: torch.kron(
            t["lokr_w1"][..., None, None], (t["lokr_w2_a"] @ t["lokr_w2_b"]).view(4, 4, 3, 3)
        ).flatten(1),
    ),
    "lokr with a core": (
        {"lokr_w1": (3, 2), "lokr_w2_a": (RANK, 4), "lokr_w2_b": (RANK, 4), "lokr_t2": (RANK, RANK, 3, 3)},
        lambda t: torch.kron(
            t["lokr_w1"][..., None, None], core(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
        ).flatten(1),
    ),
}  # fmt: skip


def tensors_of(case, name=UNET, alpha=2.0):
    shapes, formula = CASES[case]
    own = {key: drawn(*shape, seed=k) for k, (key, shape) in enumerate(shapes.items()) if key != "r"}
    file = {f"{name}.{key}": value for key, value in own.items()}
    if alpha is not None:
        file[f"{name}.alpha"] = torch.tensor(alpha)
    # Two whole matrices have no rank; LyCORIS takes s = 1 then.
    scaling = 1.0 if alpha in (None, 0.0) or "r" in shapes else alpha / RANK
    return file, scaling * formula({key: value.double() for key, value in own.items()})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("alpha", [2.0, None, 0.0])
def test_lycoris_and_kohya(case, alpha, tmp_path):
    file, expected = tensors_of(case, alpha=alpha)
    run = Trajectory.open(saved(tmp_path, file))
    assert run.modules == [PLAIN]
    close(run.update(PLAIN, 0), expected)
    factors = run.factors(PLAIN, 0, torch.float64)
    assert (factors is not None) == ("lora_down.weight" in CASES[case][0])
    if factors is not None:
        close(factors[0] @ factors[1], expected)
    assert int(run.spectra()["rank"].iloc[0]) == int(torch.linalg.matrix_rank(expected))


@pytest.mark.parametrize("axis", ["row", "column"])
@pytest.mark.parametrize("case", ["linear", "conv", "loha", "lokr with a core"])
def test_dora_scale_by_its_shape(case, axis, tmp_path):
    file, delta = tensors_of(case)
    places = delta.shape[1] // INTO
    base = drawn(OUT, INTO, 3, 3, seed=5) if places > 1 else drawn(OUT, INTO, seed=5)
    moved = base.double() + delta.view(base.shape)
    dims = [1] * (base.ndim - 1)
    if axis == "row":  # wd_on_out
        scale = drawn(OUT, *dims, seed=6).abs()
        norms = moved.reshape(OUT, -1).norm(dim=1).reshape(OUT, *dims)
    else:
        scale = drawn(1, INTO, *dims[1:], seed=6).abs()
        norms = moved.transpose(0, 1).reshape(INTO, -1).norm(dim=1).reshape(INTO, *dims).transpose(0, 1)
    expected = (moved * (scale / norms)).flatten(1)
    file[f"{UNET}.dora_scale"] = scale
    name = PLAIN.removeprefix("unet.")
    run = Trajectory.open(saved(tmp_path, file), base={f"{name}.weight": base})
    close(run.weight(PLAIN, 0, torch.float64), expected)
    close(run.update(PLAIN, 0), expected - base.flatten(1).double())
    table = run.changes("base", axes=(axis,))
    W = base.flatten(1).double()
    # An input channel's slice W[:, c, …] is a kernel's column.
    lengths = [M.norm(dim=1) if axis == "row" else M.view(OUT, INTO, -1).norm(dim=(0, 2)) for M in (expected, W)]
    assert table["delta_m"].iloc[0] == pytest.approx(float((lengths[0] - lengths[1]).abs().mean()), rel=1e-5)
    with pytest.raises(RecordError, match=r"W₀ of .* is needed"):
        Trajectory.open(tmp_path / "a.safetensors").update(PLAIN, 0)


def test_full_differences_scales_and_norms(tmp_path, caplog):
    W, C = drawn(OUT, INTO, seed=1), drawn(OUT, INTO, 3, 3, seed=2)
    file = {
        "lycoris_mid_block_proj_in.diff": drawn(OUT, INTO, seed=3), "lycoris_mid_block_proj_in.diff_b": drawn(OUT),
        "lycoris_conv_in.weight": drawn(1, INTO, 1, 1, seed=4), "lycoris_conv_in.on_input": torch.tensor(1),
        "lycoris_conv_out.weight": drawn(1, OUT, 1, 1, seed=5), "lycoris_conv_out.on_input": torch.tensor(0),
        "lycoris_attn1_to_q.weight": drawn(OUT, seed=6), "lycoris_attn1_to_q.on_input": torch.tensor(0),
        "lycoris_norm1.w_norm": drawn(OUT), "lycoris_norm1.b_norm": drawn(OUT),
        "lycoris_mlp_fc1.oft_blocks": drawn(2, 4, 4),
    }  # fmt: skip
    base = {"mid_block.proj_in.weight": W, "conv_in.weight": C, "conv_out.weight": C, "attn1.to_q.weight": W}
    run = Trajectory.open(saved(tmp_path, file), base=base)
    close(run.update("mid_block.proj_in", 0), file["lycoris_mid_block_proj_in.diff"])
    close(run.update("conv_in", 0), (C * file["lycoris_conv_in.weight"]).flatten(1))
    by_out = C.transpose(0, 1) * file["lycoris_conv_out.weight"]  # LyCORIS' IA3
    close(run.update("conv_out", 0), by_out.transpose(0, 1).flatten(1))
    close(run.update("attn1.to_q", 0), W * file["lycoris_attn1_to_q.weight"][:, None])
    assert set(run.info["left_out"]) == {"lycoris_norm1", "lycoris_mid_block_proj_in (bias)", "lycoris_mlp_fc1"}
    assert "norm's scale" in caplog.text
    assert "OFT" in caplog.text
    alone = Trajectory.open(tmp_path / "a.safetensors")
    assert alone.modules == ["mid_block.proj_in"]  # scales say one side only
    assert "conv_in" in alone.info["left_out"]


def test_kohya_s_metadata_is_kept_as_text(tmp_path):
    file, _ = tensors_of("linear")
    run = Trajectory.open(saved(tmp_path, file, metadata={"ss_network_dim": "3", "ss_network_module": "networks.lora"}))
    assert run.info["metadata"] == {"ss_network_dim": "3", "ss_network_module": "networks.lora"}
    assert run.info["adapter"] == "kohya's LoRA (sd-scripts)"


def test_rs_lora_of_lycoris_is_told(tmp_path):
    file, expected = tensors_of("loha")
    said = json.dumps({"algo": "loha", "rs_lora": "True"})
    run = Trajectory.open(saved(tmp_path, file, metadata={"ss_network_args": said}))
    assert "rs_lora" in run.info["notes"][0]
    close(run.update(PLAIN, 0), expected)  # as LyCORIS's own loader reads it


def test_inspect_names_the_tool_and_what_the_file_says(tmp_path, capsys):
    from deltaw.cli import main

    file, _ = tensors_of("linear")
    file["lora_unet_mid_norm.w_norm"] = drawn(OUT)
    path = saved(tmp_path, file, metadata={"ss_network_dim": "3", "ss_tag_frequency": "x" * 500})
    main(["inspect", str(path), "--quick"])
    out = capsys.readouterr().out
    for said in ("kohya", "sd-scripts", "ss_network_dim", "left out", "lora_unet_mid_norm"):
        assert said in out
    assert "x" * 101 not in out


@pytest.mark.parametrize("lead", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_wrappers_are_taken_off(lead, tmp_path):
    for case, names in (("torchtune", ("lora_a.weight", "lora_b.weight")), ("loralib", ("lora_A", "lora_B"))):
        down, up = drawn(RANK, INTO), drawn(OUT, RANK, seed=1)
        file = {f"{lead}layers.0.attn.v_proj.{name}": value for name, value in zip(names, (down, up), strict=True)}
        run = Trajectory.open(saved(tmp_path / case, file))
        assert run.modules == ["layers.0.attn.v_proj"]
        close(run.update(run.modules[0], 0), up @ down)


def test_mlx_s_older_file_is_refused_with_its_conversion(tmp_path):
    (tmp_path / "adapters.npz").write_bytes(b"none")
    (tmp_path / "adapter_config.json").write_text(json.dumps(MLX))
    with pytest.raises(RecordError, match=r"MLX's adapters.*save_safetensors"):
        Trajectory.open(tmp_path)


def test_kohya_s_epochs_are_steps(tmp_path, caplog):
    updates = {}
    for step, name in ((1, "last-000001"), (2, "last-000002"), (3, "last")):
        file = {f"{UNET}.lora_down.weight": drawn(RANK, INTO, seed=step), f"{UNET}.lora_up.weight": drawn(OUT, RANK)}
        saved(tmp_path, file, f"{name}.safetensors")
        updates[step] = file[f"{UNET}.lora_up.weight"] @ file[f"{UNET}.lora_down.weight"]
    run = Trajectory.open(tmp_path)
    assert run.steps == [1, 2]
    assert "last.safetensors left out" in caplog.text
    for step in run.steps:
        close(run.update(PLAIN, step), updates[step])
    (tmp_path / "last.safetensors").unlink()
    assert Trajectory.open(tmp_path).steps == [1, 2]


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("{}.processor.to_q_lora.{}.weight", "{}.to_q"),
        ("{}.processor.to_out_lora.{}.weight", "{}.to_out.0"),
        ("unet.{}.to_k.lora.{}.weight", "unet.{}.to_k"),
        ("text_encoder.{}.q_proj.lora_linear_layer.{}.weight", "text_encoder.{}.q_proj"),
        ("transformer.{}.to_v.lora_{}.weight", "transformer.{}.to_v"),
        ("unet.{}.to_v.lora_{}.default.weight", "unet.{}.to_v"),
        ("diffusion_model.{}.to_v.lora_{}.weight", "diffusion_model.{}.to_v"),
    ],
    ids=["processor", "processor out", "lora", "linear layer", "peft", "peft, named", "comfyui"],
)
def test_diffusers(key, module, tmp_path):
    down, up = drawn(RANK, INTO), drawn(OUT, RANK, seed=1)
    names = ("A", "B") if "lora_{}" in key else ("down", "up")
    layer = "down_blocks.0.attentions.0.attn1"
    file = {key.format(layer, side): value for side, value in zip(names, (down, up), strict=True)}
    for step in (500, 1000):
        saved(tmp_path / f"checkpoint-{step}", file, "pytorch_lora_weights.safetensors")
        (tmp_path / f"checkpoint-{step}" / "optimizer.bin").write_bytes(b"none")
    saved(tmp_path, file, "pytorch_lora_weights.safetensors")
    run = Trajectory.open(tmp_path)
    assert run.steps == [500, 1000]
    assert run.modules == [module.format(layer)]
    close(run.update(run.modules[0], 500), up @ down)
    alone = Trajectory.open(tmp_path / "pytorch_lora_weights.safetensors")
    assert "notes" not in alone.info  # diffusers takes α = r where no α is
    assert alone.modules == run.modules


def test_diffusers_alpha_in_its_metadata(tmp_path):
    layers = ("transformer.blocks.0.to_q", "transformer.blocks.1.to_q", "text_encoder.layers.0.q_proj")
    file = {}
    for k, layer in enumerate(layers):
        file |= {
            f"{layer}.lora_A.weight": drawn(RANK, INTO, seed=k),
            f"{layer}.lora_B.weight": drawn(OUT, RANK, seed=k),
        }
    settings = {
        "transformer.lora_alpha": 6, "transformer.r": RANK, "transformer.alpha_pattern": {"blocks.1.to_q": 12},
        "text_encoder.lora_alpha": 5, "text_encoder.r": RANK, "text_encoder.use_rslora": True,
    }  # fmt: skip
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
    run = Trajectory.open(saved(tmp_path, file, "pytorch_lora_weights.safetensors", metadata))
    for layer, s in zip(layers, (2.0, 4.0, 5 / math.sqrt(RANK)), strict=True):
        close(run.update(layer, 0), s * file[f"{layer}.lora_B.weight"] @ file[f"{layer}.lora_A.weight"])
    for wrong, said in (
        (json.dumps({**settings, "transformer.init_lora_weights": "pissa"}), "pissa"),
        ("{", "damaged"),
    ):
        saved(tmp_path, file, "pytorch_lora_weights.safetensors", {"lora_adapter_metadata": wrong})
        with pytest.raises(RecordError, match=said):
            Trajectory.open(tmp_path)


MLX = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": RANK, "scale": 20.0, "dropout": 0.0}}


def test_mlx(tmp_path):
    q, embed, experts = "model.layers.0.self_attn.q_proj", "model.embed_tokens", "model.layers.0.mlp.switch_mlp.up_proj"
    file = {
        f"{q}.lora_a": drawn(INTO, RANK), f"{q}.lora_b": drawn(RANK, OUT, seed=1),
        f"{embed}.lora_a": drawn(20, RANK), f"{embed}.lora_b": drawn(RANK, INTO, seed=1),
        f"{experts}.lora_a": drawn(2, RANK, INTO), f"{experts}.lora_b": drawn(2, OUT, RANK, seed=1),
    }  # fmt: skip
    for name in ("0000100_adapters", "0000200_adapters", "adapters"):
        saved(tmp_path, file, f"{name}.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(MLX))
    run = Trajectory.open(tmp_path)
    assert run.steps == [100, 200]
    close(run.update(q, 100), 20 * (file[f"{q}.lora_a"] @ file[f"{q}.lora_b"]).T)
    close(run.update(embed, 100), 20 * file[f"{embed}.lora_a"] @ file[f"{embed}.lora_b"])
    for k in range(2):
        close(
            run.update(f"model.layers.0.mlp.experts.{k}.up_proj", 200),
            20 * file[f"{experts}.lora_b"][k] @ file[f"{experts}.lora_a"][k],
        )
    close(Trajectory.open(tmp_path / "adapters.safetensors").update(q, 0), run.update(q, 100))
    (tmp_path / "adapter_config.json").unlink()
    alone = Trajectory.open(tmp_path / "adapters.safetensors")
    assert "scale" in alone.info["notes"][0]
    close(20 * alone.update(q, 0), run.update(q, 100))


def test_mlx_dora_and_full(tmp_path):
    q, W = "model.layers.0.self_attn.q_proj", drawn(OUT, INTO, seed=3)
    file = {f"{q}.lora_a": drawn(INTO, RANK), f"{q}.lora_b": drawn(RANK, OUT, seed=1), f"{q}.m": drawn(OUT).abs()}
    saved(tmp_path, file, "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**MLX, "fine_tune_type": "dora"}))
    run = Trajectory.open(tmp_path, base={f"{q}.weight": W})
    adapted = W + (20.0 * file[f"{q}.lora_b"].T) @ file[f"{q}.lora_a"].T  # DoRALinear.fuse
    close(run.weight(q, 0), (file[f"{q}.m"] / adapted.norm(dim=1))[:, None] * adapted)
    assert run.method == "dora-row"
    saved(tmp_path, {f"{q}.weight": 2 * W}, "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**MLX, "fine_tune_type": "full"}))
    run = Trajectory.open(tmp_path, base={f"{q}.weight": W})
    close(run.update(q, 0), W)
    assert run.method == "ft"


@pytest.mark.parametrize("magnitude", [False, True])
def test_torchtune(magnitude, tmp_path):
    name, hf, heads = "layers.0.attn.q_proj", "model.layers.0.self_attn.q_proj", 2
    W, outputs = drawn(8, INTO, seed=3), {}
    for epoch in (0, 1):
        file = {f"{name}.lora_a.weight": drawn(RANK, INTO, seed=epoch), f"{name}.lora_b.weight": drawn(8, RANK)}
        if magnitude:
            file[f"{name}.magnitude"] = drawn(8, seed=4).abs()
        torch.save(file, tmp_path / f"adapter_{epoch}.pt")
        (tmp_path / f"epoch_{epoch}").mkdir()
        torch.save(file, tmp_path / f"epoch_{epoch}" / "adapter_model.pt")
        outputs[epoch] = file
    settings = {"r": RANK, "lora_alpha": 6, "target_modules": ["q_proj"], "peft_type": "LORA"}
    for folder in (tmp_path, tmp_path / "epoch_0", tmp_path / "epoch_1"):
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    base = tmp_path / "base"
    saved(base, {f"{hf}.weight": W}, "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "num_attention_heads": heads}))
    # torchtune's hf_to_tune: the halves of each head's rows are put beside each other.
    tune = W.view(heads, 2, 2, INTO).transpose(1, 2).reshape(8, INTO)
    for path in (tmp_path, tmp_path / "flat"):
        if path.name == "flat":
            path.mkdir()
            for epoch in (0, 1):
                (tmp_path / f"adapter_{epoch}.pt").rename(path / f"adapter_{epoch}.pt")
            (tmp_path / "adapter_config.json").rename(path / "adapter_config.json")
        run = Trajectory.open(path, base=base)
        assert run.steps == [0, 1]
        for epoch, file in outputs.items():
            V = tune + 2.0 * file[f"{name}.lora_b.weight"] @ file[f"{name}.lora_a.weight"]
            if magnitude:
                V = V * (file[f"{name}.magnitude"] / V.norm(dim=1))[:, None]
            close(run.weight(name, epoch), V)


def test_nvlabs_dora(tmp_path):
    q, v, W = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", drawn(OUT, INTO, seed=3)
    file = {
        f"base_model.model.{q}.lora_A.weight": drawn(RANK, INTO),
        f"base_model.model.{q}.lora_B.weight": drawn(OUT, RANK),
        f"base_model.model.{q}.weight_m_wdecomp.weight": drawn(OUT, 1, seed=4).abs(),
        f"base_model.model.{v}.weight_m_wdecomp.weight": drawn(OUT, 1, seed=5).abs(),  # Wdecompose_target_modules
    }  # fmt: skip
    torch.save(file, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "DORA", "r": RANK, "lora_alpha": 6}))
    run = Trajectory.open(tmp_path, base={f"{q}.weight": W, f"{v}.weight": W})
    parts = {name.removeprefix("base_model.model."): value for name, value in file.items()}
    moved = W + 2.0 * parts[f"{q}.lora_B.weight"] @ parts[f"{q}.lora_A.weight"]
    close(run.weight(q, 0), parts[f"{q}.weight_m_wdecomp.weight"] / moved.norm(dim=1, keepdim=True) * moved)
    close(run.weight(v, 0), parts[f"{v}.weight_m_wdecomp.weight"] / W.norm(dim=1, keepdim=True) * W)
    assert [run.source.label(name) for name in (q, v)] == ["dora-row", "magnitude"]


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "student."])
def test_a_peft_model_s_state_dict(prefix, tmp_path):
    q, score, W = "model.layers.0.self_attn.q_proj", "score", drawn(OUT, INTO, seed=3)
    lead = f"{prefix}base_model.model."
    for step in (10, 20):
        file = {
            f"{lead}{q}.base_layer.weight": W, f"{lead}{q}.base_layer.bias": drawn(OUT),
            f"{lead}{q}.lora_A.default.weight": drawn(RANK, INTO, seed=step),
            f"{lead}{q}.lora_B.default.weight": drawn(OUT, RANK),
            f"{lead}model.norm.weight": drawn(INTO), f"{lead}model.layers.0.mlp.up_proj.weight": drawn(OUT, INTO),
            f"{lead}{score}.original_module.weight": drawn(2, INTO),
            f"{lead}{score}.modules_to_save.default.weight": drawn(2, INTO, seed=step),
        }  # fmt: skip
        saved(tmp_path / f"checkpoint-{step}", file, "model.safetensors")
    run = Trajectory.open(tmp_path)
    assert (run.steps, sorted(run.modules)) == ([10, 20], [q, score])
    assert "α is in no file" in run.info["notes"][0]
    delta = file[f"{lead}{q}.lora_B.default.weight"] @ file[f"{lead}{q}.lora_A.default.weight"]
    close(run.update(q, 20), delta)
    close(run.weight(q, 20), W + delta)
    close(run.update(score, 20), file[f"{lead}{score}.modules_to_save.default.weight"] - drawn(2, INTO))
    assert len(run.changes("base")) == 2 * 2 * 2
    # With its configuration in the run's folder, α is known.
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 6}))
    run = Trajectory.open(tmp_path)
    assert "notes" not in run.info
    close(run.update(q, 20), 2 * delta)


def test_dora_without_alpha_is_left_out(tmp_path):
    file = {
        "base_model.model.q.lora_A.weight": drawn(RANK, INTO), "base_model.model.q.lora_B.weight": drawn(OUT, RANK),
        "base_model.model.v.lora_A.weight": drawn(RANK, INTO), "base_model.model.v.lora_B.weight": drawn(OUT, RANK),
        "base_model.model.q.lora_magnitude_vector": drawn(OUT).abs(),
    }  # fmt: skip
    run = Trajectory.open(saved(tmp_path, file, "adapter_model.safetensors"))
    assert (run.modules, run.info["left_out"]) == (["v"], ["q"])  # ΔW of q depends on α in more than its size
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 6, "use_dora": True}))
    assert Trajectory.open(tmp_path / "adapter_model.safetensors").modules == ["q", "v"]


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_an_alpha_that_is_no_number_is_an_error(alpha, tmp_path):
    file, _ = tensors_of("linear", alpha=alpha)
    with pytest.raises(RecordError, match=f"alpha is {alpha}"):
        Trajectory.open(saved(tmp_path, file)).update(PLAIN, 0)
    pair = {"unet.q.lora_A.weight": drawn(RANK, INTO), "unet.q.lora_B.weight": drawn(OUT, RANK)}
    path = saved(tmp_path, pair, metadata={"lora_adapter_metadata": json.dumps({"unet.lora_alpha": "8"})})
    with pytest.raises(RecordError, match="lora_alpha = '8' is no number"):
        Trajectory.open(path)


def test_peft_without_its_prefix_is_told_its_unknown_alpha(tmp_path):
    for name in ("transformer.h.0.attn.c_attn", "model.layers.0.self_attn.q_proj"):
        file = {f"{name}.lora_A.weight": drawn(RANK, INTO), f"{name}.lora_B.weight": drawn(OUT, RANK)}
        assert "α is in no file" in Trajectory.open(saved(tmp_path, file)).info["notes"][0]


def test_several_adapters_in_one_file_are_named(tmp_path):
    file = {}
    for adapter in ("vision", "speech"):
        file |= {
            f"unet.q.lora_A.{adapter}.weight": drawn(RANK, INTO),
            f"unet.q.lora_B.{adapter}.weight": drawn(OUT, RANK),
        }
    with pytest.raises(RecordError, match="holds the adapters speech, vision"):
        Trajectory.open(saved(tmp_path, file))


def conv1d(A, B, groups):
    """loralib's and LitGPT's grouped product."""
    return F.conv1d(A[None], B[..., None], groups=groups)[0]


@pytest.mark.parametrize("where", ["attn.qkv", "attn.attn"])
@pytest.mark.parametrize("parts", ["qkv", "qv", "v"])
def test_litgpt(where, parts, tmp_path):
    heads, groups, head, width = 4, 2, 2, 8
    name, proj = f"transformer.h.0.{where}", "transformer.h.0.attn.proj"
    sizes = {"q": heads * head, "k": groups * head, "v": groups * head}
    A, B = drawn(RANK * len(parts), width), drawn(sum(sizes[x] for x in parts), RANK, seed=1)
    file = {
        f"{name}.lora_A": A,
        f"{name}.lora_B": B,
        f"{proj}.lora_A": drawn(RANK, 8),
        f"{proj}.lora_B": drawn(8, RANK),
    }
    for step in ("step-000100", "step-000200", "final"):
        (tmp_path / step).mkdir()
        torch.save({"model": file}, tmp_path / step / "lit_model.pth.lora")
        flags = "".join(f"lora_{n}: {str(n[0] in parts).lower()}\n" for n in ("query", "key", "value"))
        (tmp_path / step / "hyperparameters.yaml").write_text(
            f"lora_r: {RANK}\nlora_alpha: 6\n{flags}train:\n  epochs: 1\n"
        )
        (tmp_path / step / "model_config.yaml").write_text(
            f"name: x\nhead_size: {head}\nn_head: {heads}\nn_query_groups: {groups}\nn_embd: {width}\n"
        )
    per = heads // groups + 2
    out = (heads + 2 * groups) * head
    # LitGPT: the product of each part, put into the rows of query, key and value (zero_pad).
    rows, begin, pieces = [], 0, []
    for k, x in enumerate(parts):
        pieces.append(B[begin : begin + sizes[x]] @ A[k * RANK : (k + 1) * RANK])
        begin += sizes[x]
        if where == "attn.attn" and parts != "qkv":
            inside = {"q": lambda i: i < per - 2, "k": lambda i: i == per - 2, "v": lambda i: i == per - 1}[x]
            rows += [row for row in range(out) if inside((row // head) % per)]
        else:
            start = {"q": 0, "k": sizes["q"], "v": sizes["q"] + sizes["k"]}[x]
            rows += range(start, start + sizes[x])
    expected = torch.zeros(out, width)
    expected[rows] = 2 * torch.cat(pieces)
    run = Trajectory.open(tmp_path, split=False)
    assert run.steps == [100, 200]
    close(run.update(name, 100), expected)
    close(run.update(proj, 100), 2 * file[f"{proj}.lora_B"] @ file[f"{proj}.lora_A"])
    alone = Trajectory.open(tmp_path / "final" / "lit_model.pth.lora", split=False)
    close(alone.update(name, 0), expected)


def test_loralib(tmp_path):
    name, q = "transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"
    A, B = drawn(2 * RANK, INTO), drawn(2 * OUT, RANK, seed=1)
    file = {f"{name}.lora_A": A, f"{name}.lora_B": B, f"{q}.lora_A": drawn(RANK, INTO), f"{q}.lora_B": drawn(OUT, RANK)}
    torch.save({"model_state_dict": file}, tmp_path / "model.26289.pt")
    run = Trajectory.open(tmp_path / "model.26289.pt")
    assert run.modules == [q]
    assert (run.info["left_out"], "α is in no file" in run.info["notes"][0]) == ([name], True)
    close(run.update(q, 0), file[f"{q}.lora_B"] @ file[f"{q}.lora_A"])
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 6, "enable_lora": [true, false, true]}')
    run = Trajectory.open(tmp_path / "model.26289.pt", split=False)
    product = conv1d(A, B, 2)
    close(run.update(name, 0), 2 * torch.cat([product[:OUT], torch.zeros(OUT, INTO), product[OUT:]]))
    # Beside the weights: all rows of a matrix are adapted, and W₀ is there.
    (tmp_path / "adapter_config.json").unlink()
    W = drawn(INTO, 2 * OUT, seed=4)  # fan_in_fan_out
    torch.save({**file, f"{name}.weight": W}, tmp_path / "whole.pt")
    run = Trajectory.open(tmp_path / "whole.pt", split=False)
    close(run.weight(name, 0), W.T + product)


def test_minlora(tmp_path):
    lead, W = "layers.0.q.parametrizations.weight", drawn(OUT, INTO)
    file = {f"{lead}.original": W, f"{lead}.0.lora_A": drawn(RANK, INTO), f"{lead}.0.lora_B": drawn(OUT, RANK, seed=1)}
    run = Trajectory.open(saved(tmp_path, file))
    close(run.weight("layers.0.q", 0), W + file[f"{lead}.0.lora_B"] @ file[f"{lead}.0.lora_A"])


HUB = {"architecture": "lora", "alpha": 6, "r": RANK, "attn_matrices": ["q", "v"], "composition_mode": "add"}


def test_adapterhub(tmp_path):
    q, fused, W = "bert.encoder.layer.0.attention.self.query", "transformer.h.0.attn.c_attn", drawn(OUT, INTO)
    file = {
        f"{q}.loras.mine.lora_A": drawn(RANK, INTO), f"{q}.loras.mine.lora_B": drawn(OUT, RANK, seed=1),
        f"{fused}.loras.mine.lora_A": drawn(2 * RANK, INTO), f"{fused}.loras.mine.lora_B": drawn(2 * OUT, RANK, seed=1),
    }  # fmt: skip
    torch.save(file, tmp_path / "pytorch_adapter.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"config": HUB, "model_type": "bert"}))
    run = Trajectory.open(tmp_path, split=False)
    close(run.update(q, 0), 2 * file[f"{q}.loras.mine.lora_B"] @ file[f"{q}.loras.mine.lora_A"])
    product = 2 * conv1d(file[f"{fused}.loras.mine.lora_A"], file[f"{fused}.loras.mine.lora_B"], 2)
    close(run.update(fused, 0), torch.cat([product[:OUT], torch.zeros(OUT, INTO), product[OUT:]]))
    scale = drawn(OUT, 1)
    torch.save({f"{q}.loras.mine.lora_B": scale}, tmp_path / "pytorch_adapter.bin")
    ia3 = {**HUB, "composition_mode": "scale", "alpha": 1, "r": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"config": ia3, "model_type": "bert"}))
    close(Trajectory.open(tmp_path, base={f"{q}.weight": W}).weight(q, 0), W * scale)
    for change, said in (({"use_gating": True}, "use_gating"), ({"architecture": "mam"}, "'mam'")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"config": {**HUB, **change}, "model_type": "bert"}))
        with pytest.raises(RecordError, match=said):
            Trajectory.open(tmp_path)


def test_a_file_s_tensors_that_do_not_go_together_are_one_error(tmp_path):
    for down, up in (((3, 8), (12, 4)), ((3,), (12, 3))):
        file = {f"{UNET}.lora_down.weight": torch.zeros(down), f"{UNET}.lora_up.weight": torch.zeros(up)}
        path = saved(tmp_path, file)
        with pytest.raises(RecordError, match="kohya's LoRA"):
            Trajectory.open(path)
    file = {f"{UNET}.lora_down.weight": torch.zeros(3, 8), f"{UNET}.lora_up.weight": torch.zeros(12, 3)}
    with pytest.raises(RecordError, match="alpha has 2 numbers"):
        Trajectory.open(saved(tmp_path, {**file, f"{UNET}.alpha": torch.zeros(2)})).update(PLAIN, 0)


def test_what_is_no_layer_is_named(tmp_path, caplog):
    file, expected = tensors_of("linear")
    others = {"bundle_emb.word.string_to_param.*": drawn(2, INTO), "diffusion_model.blocks.0.diff_m": drawn(1, 6, INTO)}
    run = Trajectory.open(saved(tmp_path, file | others))
    close(run.update(PLAIN, 0), expected)
    assert run.modules == [PLAIN]
    assert set(run.info["left_out"]) == set(others)
    assert "no part of an adapter's layer" in caplog.text


def test_products_of_two_shapes_are_refused(tmp_path):
    file, _ = tensors_of("loha")
    file[f"{UNET}.hada_w2_b"] = drawn(RANK, INTO + 1)
    with pytest.raises(RecordError, match=r"LyCORIS's LoHa.*do not go together"):
        Trajectory.open(saved(tmp_path, file))


def test_a_bias_is_no_adapter_s_name(tmp_path, caplog):
    down, up, layer = drawn(RANK, INTO), drawn(OUT, RANK, seed=1), "transformer.blocks.0.to_q"
    file = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up, f"{layer}.lora_B.bias": drawn(OUT)}
    torch.save(file, tmp_path / "a.pt")  # in this order: the bias is last
    run = Trajectory.open(tmp_path / "a.pt")
    close(run.update(layer, 0), up @ down)
    assert run.info["left_out"] == [f"{layer}.lora_B.bias"]


@pytest.mark.parametrize("tool", ["loralib", "peft"])
def test_an_alpha_of_zero_is_told(tool, tmp_path, caplog):
    q = "model.layers.0.self_attn.q_proj"
    names = {"loralib": (q + ".lora_A", q + ".lora_B")}.get(
        tool, (f"base_model.model.{q}.lora_A.weight", f"base_model.model.{q}.lora_B.weight")
    )
    settings = {"lora_alpha": 0, "r": RANK} | ({"peft_type": "LORA"} if tool == "peft" else {"enable_lora": [True]})
    saved(tmp_path, dict(zip(names, (drawn(RANK, INTO), drawn(OUT, RANK)), strict=True)), "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    run = Trajectory.open(tmp_path)
    assert not run.update(q, 0).any()
    assert "is 0" in run.info["notes"][0]
    assert "ΔW = 0" in caplog.text


def test_an_embedding_beside_adapters_is_left_out(tmp_path, caplog):
    file, expected = tensors_of("linear")
    saved(tmp_path, file, "mine.safetensors")
    for name in ("a_token.safetensors", "token.safetensors"):
        saved(tmp_path, {"clip_l": drawn(2, INTO), "clip_g": drawn(2, OUT)}, name)
    run = Trajectory.open(tmp_path)
    close(run.update(PLAIN, 0), expected)
    assert "a_token.safetensors, token.safetensors left out, an embedding of textual inversion" in caplog.text
    (tmp_path / "mine.safetensors").rename(tmp_path / "mine-000001.safetensors")
    saved(tmp_path, file, "mine-000002.safetensors")
    assert Trajectory.open(tmp_path).steps == [1, 2]


def test_mlx_from_before_its_scale_was_one_number(tmp_path):
    q, W = "model.layers.0.self_attn.q_proj", drawn(OUT, INTO, seed=3)
    file = {f"{q}.lora_a": drawn(INTO, RANK), f"{q}.lora_b": drawn(RANK, OUT, seed=1), f"{q}.linear.weight": W}
    saved(tmp_path, file, "adapters.safetensors")
    parameters = {"keys": ["self_attn.q_proj"], "rank": RANK, "alpha": 16.0, "scale": 10.0, "dropout": 0.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_layers": 1, "lora_parameters": parameters}))
    run = Trajectory.open(tmp_path)
    assert run.modules == [q]
    expected = (
        10.0 * (16.0 / RANK) * (file[f"{q}.lora_a"] @ file[f"{q}.lora_b"]).T
    )  # LoRALinear of older versions of mlx-lm
    close(run.update(q, 0), expected)
    close(run.weight(q, 0), W + expected)  # its layer holds W₀ as linear.weight


def test_mlx_vlm(tmp_path):
    q = "language_model.model.layers.0.self_attn.q_proj"
    file = {f"{q}.A": drawn(INTO, RANK), f"{q}.B": drawn(RANK, OUT, seed=1)}
    saved(tmp_path, file, "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"rank": RANK, "alpha": 0.1, "dropout": 0.1}))
    run = Trajectory.open(tmp_path)
    close(run.update(q, 0), 0.1 * (file[f"{q}.A"] @ file[f"{q}.B"]).T)  # LoRaLayer: y + alpha·(x A) B


@pytest.mark.parametrize("alpha", ["NaN", '"eight"', "true", "1e999"])
def test_an_alpha_that_is_no_number_is_refused(alpha, tmp_path):
    torch.save({"layers.0.q.lora_A": drawn(RANK, INTO), "layers.0.q.lora_B": drawn(OUT, RANK)}, tmp_path / "a.pt")
    (tmp_path / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}, "enable_lora": [true]}}')
    with pytest.raises(RecordError, match=r"loralib.*lora_alpha = .* is no number"):
        Trajectory.open(tmp_path / "a.pt")

"""Quantised weights: W as the library that wrote it makes it, and a refusal of what is not as the format says."""

import json

import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters.bitsandbytes import load_bitsandbytes
from deltaw.adapters.errors import RecordError
from deltaw.analysis import Trajectory, inspect_run
from deltaw.analysis.records.foreign.quantised.packing import unpacked
from deltaw.cli import main

MODULE = "model.layers.0.self_attn.q_proj"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def words(codes, bits):
    """Whole numbers (rows, n) as one stream of bits a row, the lowest first."""
    rows = []
    for row in codes.tolist():
        stream = sum(code << (i * bits) for i, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([(stream >> (32 * k)) & 0xFFFFFFFF for k in range(count)])
    return torch.tensor(rows, dtype=torch.int64).to(torch.int32)


def bitsandbytes_4(kind, nested, shape=(48, 80)):
    library = load_bitsandbytes()
    weight = draw(*shape).bfloat16()
    packed, state = library.functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested, blocksize=64)
    tensors = {"weight": packed, **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
    state.dtype = torch.float32
    if weight.numel() % 64 == 0:  # the library's AVX512 kernel errs where a block runs through a row's end
        state.shape = torch.Size((weight.numel() // 64, 64))
    return tensors, library.functional.dequantize_4bit(packed, state).reshape(shape).bfloat16(), None


def bitsandbytes_8():
    weight = draw(24, 16)
    scales = weight.abs().amax(1)
    codes = (weight * 127 / scales[:, None]).round().to(torch.int8)
    tensors = {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, load_bitsandbytes().functional.int8_vectorwise_dequant(codes, scales), None


def float8(kind):
    weight, settings = draw(40, 48), None
    shape = {"block": (3, 2), "row": (40, 1), "flat row": (40,), "matrix": (), "lone": (1, 1)}[kind]
    scales = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    codes = weight.to(torch.float8_e4m3fn)
    if kind == "block":
        settings = {"quant_method": "fp8", "weight_block_size": [16, 32]}
        spread = scales.repeat_interleave(16, 0)[:40].repeat_interleave(32, 1)[:, :48]
    else:
        spread = scales.reshape(-1, 1) if scales.numel() > 1 else scales.reshape(())
    return (
        {"weight": codes, "weight_scale_inv" if kind == "block" else "weight_scale": scales},
        codes.float() * spread,
        settings,
    )


def gptq(bits, form="gptq", act_order=False, size=32):
    """A group of ``size`` inputs has a scale and a zero; the code of the zero is stored less 1."""
    out, into = 32, 64
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (into, out), generator=generator)
    zeros = torch.randint(0, 2**bits, (into // size, out), generator=generator)
    scales = (torch.rand(into // size, out, generator=generator) / 100).half()
    groups = torch.arange(into) // size
    if act_order:
        groups = groups[torch.randperm(into, generator=generator)]
    stored = (zeros - int(form == "gptq")) % 2**bits
    tensors = {"qweight": words(codes.T, bits).T.contiguous(), "qzeros": words(stored, bits), "scales": scales}
    wanted = ((codes - zeros[groups]).float() * scales.float()[groups]).half().T
    settings = {"quant_method": "gptq", "bits": bits, "group_size": size, "checkpoint_format": form}
    return tensors | {"g_idx": groups.int()}, wanted, settings


def awq():
    out, into, size = 32, 64, 32
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (into, out), generator=generator)
    zeros = torch.randint(0, 16, (into // size, out), generator=generator)
    scales = (torch.rand(into // size, out, generator=generator) / 100).half()
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ packs number order[i] at place i of a word
    packed = [words(c.view(len(c), -1, 8)[:, :, order].reshape(len(c), -1), 4) for c in (codes, zeros)]
    wanted = ((codes - zeros.repeat_interleave(size, 0)).float() * scales.float().repeat_interleave(size, 0)).half().T
    return {"qweight": packed[0], "qzeros": packed[1], "scales": scales}, wanted, {"quant_method": "awq", "bits": 4}


def compressed(bits, groups=1, zero=False):
    rows, columns = 24, 64
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    scales = (torch.rand(rows, groups, generator=generator) / 100).bfloat16()
    tensors = {
        "weight_packed": words(codes, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([rows, columns]),
    }
    middle = torch.full((rows, groups), 2 ** (bits - 1))
    if zero:
        middle = torch.randint(0, 2**bits, (rows, groups), generator=generator)
        tensors["weight_zero_point"] = words(middle.T, bits).T.contiguous()
    spread = [part.float().repeat_interleave(columns // groups, 1) for part in (middle, scales)]
    return tensors, ((codes - spread[0]) * spread[1]).bfloat16(), {"quant_method": "compressed-tensors"}


KINDS = {
    "nf4": lambda: bitsandbytes_4("nf4", False),
    "nf4 nested": lambda: bitsandbytes_4("nf4", True),
    "fp4": lambda: bitsandbytes_4("fp4", False),
    "nf4 ragged": lambda: bitsandbytes_4("nf4", True, (7, 13)),
    "int8": bitsandbytes_8,
    **{f"fp8 {kind}": lambda kind=kind: float8(kind) for kind in ("block", "row", "flat row", "matrix", "lone")},
    **{f"gptq {bits}": lambda bits=bits: gptq(bits) for bits in (2, 3, 4, 8)},
    "gptq v2": lambda: gptq(4, "gptq_v2"),
    "gptq act-order": lambda: gptq(4, act_order=True),
    "awq": awq,
    "compressed 4": lambda: compressed(4),
    "compressed 4 groups": lambda: compressed(4, 2, True),
    "compressed 8": lambda: compressed(8, 4),
}


def write(folder, tensors, settings):
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"{MODULE}.{name}": value.contiguous() for name, value in tensors.items()}
    state["model.embed_tokens.weight"] = draw(10, 16)
    save_file(state, folder / "model.safetensors")
    config = {"model_type": "llama"} | ({} if settings is None else {"quantization_config": settings})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter(folder, shape):
    folder.mkdir()
    pair = {"lora_A": draw(2, shape[1]), "lora_B": draw(shape[0], 2)}
    save_file(
        {f"base_model.model.{MODULE}.{n}.weight": v for n, v in pair.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return 2 * pair["lora_B"].double() @ pair["lora_A"].double()


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_is_what_the_format_says(kind, tmp_path):
    tensors, wanted, settings = KINDS[kind]()
    update = adapter(tmp_path / "adapter", wanted.shape)
    run = Trajectory.open(tmp_path / "adapter", base=write(tmp_path / "base", tensors, settings))
    found = run.base(MODULE)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)
    torch.testing.assert_close(run.weight(MODULE, 0, torch.float64), wanted.double() + update)
    assert len(run.changes("base")) == 2
    assert Trajectory.open(tmp_path / "base").modules == [MODULE]  # the model itself, as a checkpoint


def test_experts_in_mxfp4_as_transformers_reads_them(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 16, 2, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(118, 128, (3, 16, 2), generator=generator).to(torch.uint8)
    wanted = convert_moe_packed_tensors(blocks, scales)  # (experts, in, out)
    name = "model.layers.0.mlp.experts.down_proj"
    (tmp_path / "base").mkdir()
    save_file({f"{name}_blocks": blocks, f"{name}_scales": scales}, tmp_path / "base" / "model.safetensors")
    config = {"model_type": "gpt_oss", "hidden_size": 16, "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    run = Trajectory.open(tmp_path / "base")
    assert run.modules == [f"model.layers.0.mlp.experts.{k}.down_proj" for k in range(3)]
    for k, module in enumerate(run.modules):
        assert torch.equal(run.weight(module, 0), wanted[k].T)


def test_blocks_of_fp8_as_transformers_reads_them():
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    tensors, wanted, settings = float8("block")
    found = _dequantize_fp8_weight(
        tensors["weight"], tensors["weight_scale_inv"], settings["weight_block_size"], torch.float32
    )
    assert torch.equal(found, wanted)


def test_a_stream_of_bits():
    codes = torch.randint(0, 8, (2, 70), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpacked(words(codes, 3), 3, 70), codes)


@pytest.mark.parametrize(
    ("kind", "harm", "reason"),
    [
        ("nf4", {"weight.absmax": torch.zeros(3)}, "3 absmax for 60 blocks"),
        ("nf4", {"weight": torch.zeros(7, 1, dtype=torch.uint8)}, "7 bytes for 3840"),
        ("nf4 nested", {"weight.nested_quant_map": torch.zeros(2)}, "nested absmax"),
        ("int8", {"SCB": torch.zeros(2)}, "2 scales"),
        ("int8", {"weight_format": torch.tensor(1, dtype=torch.uint8)}, "plain rows"),
        ("fp8 block", {"weight_scale_inv": torch.ones(2, 2)}, "scales for"),
        ("fp8 row", {"weight": draw(40, 48).bfloat16()}, "its weight is torch.bfloat16"),
        ("gptq 4", {"g_idx": torch.full((64,), 9, dtype=torch.int32)}, "a group that is not there"),
        ("gptq 4", {"qzeros": torch.zeros(9, 4, dtype=torch.int32)}, "zeros are"),
        ("awq", {"qzeros": torch.zeros(2, 1, dtype=torch.int32)}, "zeros are"),
        ("compressed 4", {"weight_scale": torch.ones(5, 1)}, "its scales are"),
        ("compressed 4", {"weight_shape": torch.tensor([24, 9000])}, "words for 9000 columns"),
    ],
)
def test_what_is_not_as_the_format_says_is_refused_by_name(kind, harm, reason, tmp_path):
    tensors, wanted, settings = KINDS[kind]()
    adapter(tmp_path / "adapter", wanted.shape)
    write(tmp_path / "base", tensors | harm, settings)
    run = Trajectory.open(tmp_path / "adapter", base=tmp_path / "base")
    assert len(run.spectra()) == 1  # ΔW alone needs no base
    with pytest.raises(RecordError, match=reason):
        run.base(MODULE)


@pytest.mark.parametrize(
    "state", [b"{}", b"[" * 5000, b'{"shape": [4, -1], "blocksize": 64}', b"\xff\x00", b"x" * 20_000]
)
def test_a_state_that_lies_leaves_the_base_quantised(state, tmp_path):
    tensors, wanted, _ = KINDS["nf4"]()
    adapter(tmp_path / "adapter", wanted.shape)
    key = "weight.quant_state.bitsandbytes__nf4"
    write(tmp_path / "base", tensors | {key: torch.tensor(list(state), dtype=torch.uint8)}, None)
    run = Trajectory.open(tmp_path / "adapter", base=tmp_path / "base")
    assert len(run.spectra()) == 1
    with pytest.raises(RecordError, match="the base is quantised"):
        run.base(MODULE)


def test_bits_that_nothing_tells_are_not_guessed(tmp_path):
    """Eight numbers of 1 to 4 bits take one word."""
    codes = torch.randint(0, 8, (4, 8), generator=torch.Generator().manual_seed(0))
    tensors = {"weight_packed": words(codes, 3), "weight_scale": torch.ones(4, 1), "weight_shape": torch.tensor([4, 8])}
    adapter(tmp_path / "adapter", (4, 8))
    run = Trajectory.open(tmp_path / "adapter", base=write(tmp_path / "base", tensors, None))
    with pytest.raises(RecordError, match="do not tell its bits"):
        run.base(MODULE)
    settings = {"config_groups": {"group_0": {"weights": {"num_bits": 3}}, "other": 7}}
    run = Trajectory.open(tmp_path / "adapter", base=write(tmp_path / "told", tensors, settings))
    assert torch.equal(run.base(MODULE), (codes - 4).float())


def test_inspect_knows_a_quantised_base(tmp_path):
    tensors, wanted, settings = KINDS["gptq 4"]()
    adapter(tmp_path / "adapter", wanted.shape)
    found = inspect_run(tmp_path / "adapter", base=write(tmp_path / "base", tensors, settings))
    assert not found["broken"]


def test_inspect_says_what_merging_into_the_16_bit_model_costs(tmp_path, capsys):
    tensors, wanted, _ = KINDS["nf4"]()
    adapter(tmp_path / "adapter", wanted.shape)
    quantised = write(tmp_path / "base", tensors, None)
    original = write(tmp_path / "original", {"weight": draw(48, 80).bfloat16()}, None)
    found = inspect_run(tmp_path / "adapter", base=quantised, merge_into=original)
    (row,) = found["merges"]
    update = Trajectory.open(tmp_path / "adapter").update(MODULE, 0)
    apart = draw(48, 80).bfloat16().double() - wanted.double()
    assert row["distance"] == pytest.approx(float(apart.norm() / update.norm()), rel=1e-9)
    assert "nf4" in {one["dtype"] for one in found["precision"]}
    arguments = ["inspect", tmp_path / "adapter", "--base", quantised, "--merge-into", original]
    assert main(list(map(str, arguments))) == 0
    assert f"it is {row['distance']:.3g} times ‖ΔW‖ away from the base" in capsys.readouterr().out
    other = write(tmp_path / "other", {"weight": draw(4, 4)}, None)
    found = inspect_run(tmp_path / "adapter", base=quantised, merge_into=other)
    assert found["merges"] == []
    assert [finding["check"] for finding in found["findings"]] == ["merge"]

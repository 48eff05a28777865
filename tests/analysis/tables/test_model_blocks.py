"""Blocks of a model: names of UNets and diffusion transformers, and how far each block moved."""

import math

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from deltaw.analysis import Trajectory, block_of, block_table, by_block, change
from deltaw.analysis.figures import blocks
from deltaw.analysis.names import block_order, kind_of, layer_of, stack_of

T = "transformer_blocks.0"
NAMES = {
    f"unet.down_blocks.1.attentions.0.{T}.attn1.to_q": ("unet.down_blocks.1", "down", 1, "query"),
    f"down_blocks.0.attentions.1.{T}.attn2.to_out.0": ("down_blocks.0", "down", 0, "output"),
    f"unet.mid_block.attentions.0.{T}.ff.net.0.proj": ("unet.mid_block", "mid", 0, "up"),
    "mid_block.resnets.1.conv1": ("mid_block", "mid", 0, "conv1"),
    f"up_blocks.3.attentions.2.{T}.ff.net.2": ("up_blocks.3", "up", 3, "down"),
    "input_blocks.4.0.in_layers.2": ("input_blocks.4", "down", 4, "conv1"),
    "unet.conv_in": ("unet.conv_in", "", None, "conv_in"),
    "unet.time_embedding.linear_1": ("unet.time_embedding", "", None, "linear_1"),
    # Flux, by diffusers and by its authors
    "transformer.transformer_blocks.18.attn.add_k_proj": ("transformer.transformer_blocks.18", "", 18, "key"),
    "transformer.transformer_blocks.2.attn.to_add_out": ("transformer.transformer_blocks.2", "", 2, "output"),
    "transformer_blocks.2.ff_context.net.2": ("transformer_blocks.2", "", 2, "down"),
    "single_transformer_blocks.37.proj_mlp": ("single_transformer_blocks.37", "single", 37, "up"),
    "single_transformer_blocks.37.norm.linear": ("single_transformer_blocks.37", "single", 37, "modulation"),
    "double_blocks.3.img_attn.qkv": ("double_blocks.3", "", 3, "qkv"),
    "double_blocks.3.txt_mlp.2": ("double_blocks.3", "", 3, "down"),
    "double_blocks.3.img_mod.lin": ("double_blocks.3", "", 3, "modulation"),
    # SD3 and Wan
    "joint_blocks.5.x_block.attn.qkv": ("joint_blocks.5", "", 5, "qkv"),
    "joint_blocks.5.context_block.adaLN_modulation.1": ("joint_blocks.5", "", 5, "modulation"),
    "diffusion_model.blocks.29.cross_attn.v": ("diffusion_model.blocks.29", "cross", 29, "value"),
    "blocks.29.ffn.0": ("blocks.29", "", 29, "up"),
    # others
    "text_encoder.encoder.layers.3.mlp.fc1": ("text_encoder.encoder.layers.3", "encoder", 3, "up"),
    "roberta.encoder.layer.3.attention.self.query": ("roberta.encoder.layer.3", "encoder", 3, "query"),
    "classifier.dense": ("classifier", "", None, "dense"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(NAMES))
def test_block_stack_layer_and_kind(name):
    assert (block_of(name), stack_of(name), layer_of(name), kind_of(name)) == NAMES[name]


UNET = {
    "conv_in.weight": (8, 4, 3, 3),
    "down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3),
    f"down_blocks.0.attentions.0.{T}.attn1.to_q.weight": (8, 8),
    f"down_blocks.1.attentions.0.{T}.attn1.to_q.weight": (16, 16),
    "mid_block.resnets.0.conv1.weight": (16, 16, 3, 3),
    f"up_blocks.0.attentions.0.{T}.attn1.to_q.weight": (16, 16),
    f"up_blocks.1.attentions.0.{T}.attn1.to_q.weight": (8, 8),
    "conv_out.weight": (4, 8, 3, 3),
}
ORDER = ["conv_in", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out"]


@pytest.fixture
def unet(tmp_path):
    draw = torch.Generator().manual_seed(0)
    before = {name: torch.randn(shape, generator=draw) for name, shape in UNET.items()}
    after = {name: value + 0.01 * torch.randn(value.shape, generator=draw) for name, value in before.items()}
    for name, state in (("before", before), ("after", after)):
        save_file(state, tmp_path / f"{name}.safetensors")
    return Trajectory.open(tmp_path / "after.safetensors", base=tmp_path / "before.safetensors"), before, after


def test_the_blocks_of_a_unet_by_their_definition(unet):
    run, before, after = unet
    found = by_block(block_table([run])).set_index("block")
    assert list(found.index) == ORDER
    for block, row in found.iterrows():
        own = [name for name in UNET if block_of(name.removesuffix(".weight")) == block]
        moved = sum(float((after[name] - before[name]).double().square().sum()) for name in own)
        size = sum(float(before[name].double().square().sum()) for name in own)
        assert row.matrices == len(own)
        assert row.norm == pytest.approx(math.sqrt(moved), rel=1e-6)
        assert row.base_norm == pytest.approx(math.sqrt(size), rel=1e-12)
        assert row.relative == pytest.approx(math.sqrt(moved / size), rel=1e-6)
    q = f"down_blocks.1.attentions.0.{T}.attn1.to_q.weight"
    only = change(before[q], after[q], "column")
    assert found.loc["down_blocks.1", ["delta_m", "delta_d"]].tolist() == pytest.approx([only.delta_m, only.delta_d])


def test_without_a_base_there_is_the_norm_alone(tmp_path):
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 8, 3, 3, generator=draw), torch.randn(12, 4, 1, 1, generator=draw)
    layer = "lora_unet_mid_block_resnets_0_conv1"
    file = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(4.0)}
    save_file(file, tmp_path / "a.safetensors")
    table = block_table([Trajectory.open(tmp_path / "a.safetensors")])
    (row,) = by_block(table).to_dict("records")
    assert row["block"] == "unet.mid_block"
    assert row["norm"] == pytest.approx(float((up.flatten(1) @ down.flatten(1)).norm()), rel=1e-6)
    assert all(math.isnan(row[name]) for name in ("relative", "delta_m", "delta_d"))
    assert [axes.get_xlabel() for axes in blocks(table).axes] == ["‖ΔW‖"]


def test_the_figure_draws_what_the_table_says(unet):
    run, *_ = unet
    table = block_table([run])
    figure = blocks(table)
    assert [axes.get_xlabel() for axes in figure.axes] == ["‖ΔW‖ / ‖W₀‖", "ΔM", "ΔD"]
    left = figure.axes[0]
    assert [label.get_text() for label in left.get_yticklabels()] == ORDER
    assert left.get_ylim() == (len(ORDER) - 0.5, -0.5)  # the first on top
    assert left.lines[0].get_xdata().tolist() == by_block(table)["relative"].tolist()
    one = blocks(table, measure="norm", scale="linear")
    assert one.axes[0].lines[0].get_xdata().tolist() == by_block(table)["norm"].tolist()


def test_many_blocks_are_sorted_by_number():
    names = [f"model.layers.{k}.q" for k in (10, 2, 0)]
    assert [block_of(name) for name in sorted(names, key=block_order)] == [f"model.layers.{k}" for k in (0, 2, 10)]
    assert pd.Series(names).map(block_of).nunique() == 3


def test_by_block_at_the_command_line(unet, tmp_path, capsys):
    from deltaw.cli import main

    assert (
        main(
            [
                "changes",
                str(tmp_path / "after.safetensors"),
                "--base",
                str(tmp_path / "before.safetensors"),
                "--by",
                "block",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    places = [out.index(block) for block in ORDER]
    assert places == sorted(places)

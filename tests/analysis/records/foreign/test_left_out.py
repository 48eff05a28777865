"""What of a whole model is not shown, and what share of its update that holds."""

import json

import pytest
import torch
from safetensors.torch import save_file

from deltaw.analysis import Trajectory
from deltaw.analysis.inspection.inspect import inspect_run
from deltaw.cli import main

SHAPES = {
    "model.embed_tokens.weight": (30, 8),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.self_attn.q_proj.bias": (64,),
    "model.layers.0.input_layernorm.weight": (8,),
    "vision.patch_embedding.weight": (8, 3, 2, 2),
    "scale": (),
}
SORTS = {
    "embeddings and heads": "model.embed_tokens.weight",
    "biases": "model.layers.0.self_attn.q_proj.bias",
    "norms": "model.layers.0.input_layernorm.weight",
    "convolutions": "vision.patch_embedding.weight",
    "other vectors": "scale",
}


def drawn(seed, prefix=""):
    draw = torch.Generator().manual_seed(seed)
    return {prefix + name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


@pytest.fixture
def folders(tmp_path):
    before, after = drawn(0), drawn(1)
    for name, state in (("base", before), ("model", after)):
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path, before, after


def test_the_sorts_and_their_shares(folders):
    folder, before, after = folders
    squares = {name: float((after[name].double() - before[name].double()).square().sum()) for name in SHAPES}
    found = {sort["sort"]: sort for sort in inspect_run(folder / "model", base=folder / "base")["left_out"]}
    assert set(found) == set(SORTS)
    for sort, name in SORTS.items():
        assert found[sort]["tensors"] == [name]
        assert found[sort]["entries"] == before[name].numel()
        assert found[sort]["share"] == pytest.approx(squares[name] / sum(squares.values()), rel=1e-12)
        assert found[sort]["unknown"] == 0


def test_without_a_base_or_weights_there_are_names_alone(folders):
    folder, *_ = folders
    for found in (inspect_run(folder / "model"), inspect_run(folder / "model", base=folder / "base", check=False)):
        assert {sort["sort"] for sort in found["left_out"]} == set(SORTS)
        assert {sort["share"] for sort in found["left_out"]} == {None}


def test_what_patterns_show_is_not_left_out(folders):
    folder, *_ = folders
    found = inspect_run(folder / "model", base=folder / "base", modules=["*q_proj", "*embed_tokens", "vision.*"])
    assert {sort["sort"] for sort in found["left_out"]} == {"biases", "norms", "other vectors"}
    found = inspect_run(folder / "model", base=folder / "base", modules=["vision.*"])
    assert "model.layers.0.self_attn.q_proj.weight" in {t for sort in found["left_out"] for t in sort["tensors"]}


def test_another_prefix_and_a_resized_vocabulary(folders, tmp_path):
    folder, before, _ = folders
    save_file({f"net.{name}": value for name, value in before.items()}, tmp_path / "named.safetensors")
    found = inspect_run(folder / "model", base=tmp_path / "named.safetensors")["left_out"]
    assert [sort["unknown"] for sort in found] == [0] * len(SORTS)
    save_file(before | {"model.embed_tokens.weight": torch.randn(28, 8)}, tmp_path / "small.safetensors")
    found = {s["sort"]: s for s in inspect_run(folder / "model", base=tmp_path / "small.safetensors")["left_out"]}
    assert (found["embeddings and heads"]["share"], found["embeddings and heads"]["unknown"]) == (None, 1)


def test_the_page_says_it(folders, capsys):
    folder, *_ = folders
    main(["inspect", str(folder / "model"), "--base", str(folder / "base")])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("left out"))
    assert "1 embeddings and heads (" in line
    assert "% of ‖ΔW‖²" in line


def test_convolutions_are_layers_where_they_hold_a_tenth(folders, tmp_path):
    folder, before, _ = folders
    assert Trajectory.open(folder / "model").modules == ["model.layers.0.self_attn.q_proj"]
    save_file(before | {"vision.patch_embedding.weight": torch.randn(8, 32, 2, 2)}, tmp_path / "m.safetensors")
    run = Trajectory.open(tmp_path / "m.safetensors")
    assert run.shape("vision.patch_embedding") == (8, 128)
    assert run.source.kernel("vision.patch_embedding") == (2, 2)


@pytest.mark.parametrize("rows", [28, 33])
def test_of_a_resized_vocabulary_the_common_rows_are_compared(rows, folders, tmp_path):
    folder, before, after = folders
    table = torch.randn(rows, 8)
    save_file(before | {"model.embed_tokens.weight": table}, tmp_path / "other.safetensors")
    both = min(rows, 30)
    moved = after["model.embed_tokens.weight"][:both].double() - table[:both].double()
    module, model, other = "model.embed_tokens", folder / "model", tmp_path / "other.safetensors"
    run = Trajectory.open(model, base=other, modules=[module])
    assert run.source.info["resized"] == {module: (rows, 30)}
    assert torch.equal(run.update(module, 0), moved)
    pair = Trajectory.from_pair(other, model, modules=[module])
    assert torch.equal(pair.update(module, 1), moved)
    assert len(pair.changes([(None, 1)])) == 2

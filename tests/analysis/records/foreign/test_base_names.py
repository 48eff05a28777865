"""What is W₀: by full name and by what the names say of the structure, and why there is none."""

import json

import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters import RecordError
from deltaw.analysis import Trajectory
from deltaw.analysis.records.foreign.base_names import BaseNames

Q = "layers.0.self_attn.q_proj"


def adapter(folder, *modules, rows=8, **more):
    folder.mkdir()
    tensors = {}
    for module in modules:
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, 8)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, 2)
    save_file(tensors | more, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return folder


def base(folder, config=None, **tensors):
    folder.mkdir()
    save_file({name.replace("__", "."): t for name, t in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def state(*modules, rows=8):
    return {f"{module}.weight": torch.randn(rows, 8) for module in modules}


def reason(run, module):
    with pytest.raises(RecordError) as caught:
        run.base(module)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("module", "there", "found"),
    [
        ("bert.encoder.layer.0.q", ["encoder.layer.0.q"], "encoder.layer.0.q"),
        ("encoder.layer.0.q", ["bert.encoder.layer.0.q"], "bert.encoder.layer.0.q"),
        ("vit.encoder.layer.0.q", ["encoder.layer.0.q"], "encoder.layer.0.q"),
        ("transformer.h.0.attn.c_attn", ["h.0.attn.c_attn"], "h.0.attn.c_attn"),
        ("language_model.model.layers.0.q", ["model.language_model.layers.0.q"], "model.language_model.layers.0.q"),
        ("model.layers.0.q", ["model.layers.0.q", "vision_tower.layers.0.q"], "model.layers.0.q"),
        ("layers.0.q", ["model.layers.0.q", "vision_tower.layers.0.q"], "model.layers.0.q"),
        ("model.vision_tower.layers.0.q", ["vision_tower.layers.0.q"], "vision_tower.layers.0.q"),
        ("net.0", ["0"], "0"),
        ("0", ["net.0"], "net.0"),
        ("bert.pooler.dense", ["pooler.dense"], "pooler.dense"),
        # Only the end of the name is the same.
        ("vision_tower.vision_model.encoder.layers.0.q", ["model.layers.0.q"], None),
        ("visual.layers.0.q", ["layers.0.q"], None),
        ("audio_tower.layers.0.q", ["language_model.model.layers.0.q"], None),
        ("model.layers.0.q", ["vision_model.encoder.layers.0.q"], None),
        ("model.encoder.layers.0.q", ["model.decoder.layers.0.q"], None),
        ("x.layers.0.q", ["y.blocks.0.q"], None),
        ("layers.0.q", ["a.layers.0.q", "b.layers.0.q"], None),
    ],
)  # fmt: skip
def test_names_that_differ_by_a_prefix(module, there, found):
    assert BaseNames(there, {}).find(module) == found


def test_a_vision_tower_saved_alone_is_told_by_its_configuration():
    names = ["encoder.layers.0.q"]
    assert BaseNames(names, {"model_type": "siglip_vision_model"}).find("vision_model.encoder.layers.0.q") == names[0]
    assert BaseNames(names, {"model_type": "bert"}).find("vision_model.encoder.layers.0.q") is None


def test_a_vision_tower_is_not_the_text_model(tmp_path):
    vision, text = f"vision_tower.vision_model.encoder.{Q}", f"language_model.model.{Q}"
    run = Trajectory.open(adapter(tmp_path / "a", vision, text), base=state(f"model.{Q}"))
    assert f"model.{Q} is of another part of the model" in reason(run, vision)
    assert run.base(text).shape == (8, 8)
    with pytest.warns(UserWarning, match="1 module is left out, vision_tower"):
        assert set(run.changes("base").module) == {text}


def test_one_matrix_is_not_that_of_two_modules(tmp_path):
    run = Trajectory.open(adapter(tmp_path / "a", f"left.{Q}", f"right.{Q}"), base=state(f"model.{Q}"))
    for module in run.modules:
        assert f"model.{Q} could be that of left.{Q} or right.{Q}" in reason(run, module)


def test_which_of_two_is_not_guessed(tmp_path):
    run = Trajectory.open(adapter(tmp_path / "a", Q), base=state(f"left.{Q}", f"right.{Q}"))
    assert f"it could be left.{Q} or right.{Q}" in reason(run, Q)


@pytest.mark.parametrize("told", [{"tie_word_embeddings": True}, {}])
def test_a_tied_head_is_the_embedding(told, tmp_path):
    weights = state("model.embed_tokens", rows=20) | state(f"model.{Q}")
    folder = base(tmp_path / "base", {"model_type": "llama"} | told, **weights)
    run = Trajectory.open(adapter(tmp_path / "a", "lm_head", rows=20), base=folder)
    assert torch.equal(run.base("lm_head"), weights["model.embed_tokens.weight"])
    untied = base(tmp_path / "untied", {"model_type": "llama", "tie_word_embeddings": False}, **weights)
    assert "no matrix of lm_head" in reason(Trajectory.open(tmp_path / "a", base=untied), "lm_head")
    head = base(tmp_path / "head", {"tie_word_embeddings": False}, **weights, **state("lm_head", rows=20))
    for pair in ((folder, head), (head, folder)):
        run = Trajectory.from_pair(*pair, modules=["lm_head", "*q_proj"])
        assert set(run.modules) == {"lm_head", f"model.{Q}"}
        assert len(run.changes("base")) == 8


QUANTISED = {
    "bitsandbytes, nf4": {f"model.{Q}.weight": torch.zeros(32, 1, dtype=torch.uint8)},
    "fp8": {f"model.{Q}.weight": torch.zeros(8, 8).to(torch.float8_e4m3fn)},
    "gptq": {f"model.{Q}.qweight": torch.zeros(1, 8, dtype=torch.int32), f"model.{Q}.scales": torch.zeros(1, 8)},
    "float8_e4m3fn": {f"model.{Q}.weight": torch.zeros(8, 8).to(torch.float8_e4m3fn)},
    "packed integers": {f"model.{Q}.weight_packed": torch.zeros(1, 8, dtype=torch.int32)},
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_base_is_called_one(kind, tmp_path):
    method, _, how = kind.partition(", ")
    config = {"quantization_config": {"quant_method": method} | ({"bnb_4bit_quant_type": how} if how else {})}
    folder = base(tmp_path / "base", config if method in ("bitsandbytes", "fp8", "gptq") else None, **QUANTISED[kind])
    run = Trajectory.open(adapter(tmp_path / "a", f"model.{Q}"), base=folder)
    assert f"the base is quantised ({kind})" in reason(run, f"model.{Q}")
    assert len(run.spectra()) == 1
    with pytest.raises(RecordError, match=rf"quantised \({kind}\)"):
        Trajectory.open(folder)


def test_a_new_head_another_model_and_a_convolution_are_told_apart(tmp_path):
    folder = adapter(tmp_path / "a", f"model.{Q}", "classifier.dense")
    run = Trajectory.open(folder, base=state(f"model.{Q}"))
    assert "no matrix of classifier.dense, which was added for the training" in reason(run, "classifier.dense")
    run = Trajectory.open(folder, base=state("h.0.attn.c_proj"))
    assert "is it the model that was trained? It has h.0.attn.c_proj" in reason(run, f"model.{Q}")
    run = Trajectory.open(folder, base={f"model.{Q}.weight": torch.randn(8, 9)})
    assert "of another model" in reason(run, f"model.{Q}")
    assert len(run.spectra()) == 2
    conv = {f"model.{Q}.weight": torch.randn(8, 8), "classifier.dense.weight": torch.randn(8, 8, 1)}
    assert Trajectory.open(folder, base=conv).source.kernel("classifier.dense") == (1,)

"""Adapters of other tools: never read as layers; what is damaged or not read is one line that says whose it is."""

import json
import time

import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters import RecordError
from deltaw.analysis import Trajectory
from deltaw.analysis.records.foreign.base_names import BaseNames
from deltaw.analysis.records.foreign.foreign_adapters import TOOLS, foreign_tool

# A name or two of each tool's tensors, and what the message says.
NAMES = {
    "kohya": (["lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "lora_unet_x.alpha"], "kohya's LoRA"),
    "kohya text": (["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"], "kohya's LoRA"),
    "comfy": (["diffusion_model.blocks.0.q.lora_down.weight"], "LoRA of a diffusion model"),
    "loha": (["lora_unet_a.hada_w1_a", "lora_unet_a.hada_w1_b"], "LyCORIS's LoHa"),
    "lokr": (["lycoris_a.lokr_w1", "lycoris_a.lokr_w2_a"], "LyCORIS's LoKr"),
    "dora": (["lora_unet_a.lora_down.weight", "lora_unet_a.dora_scale"], "LyCORIS's or kohya's DoRA"),
    "processors": (["down.0.attn1.processor.to_q_lora.down.weight"], "diffusers' LoRA"),
    "diffusers": (["unet.0.attn1.to_q.lora.down.weight", "unet.0.attn1.to_q.lora.up.weight"], "diffusers' LoRA"),
    "diffusers as PEFT": (["transformer.blocks.0.to_q.lora_A.weight"], "as diffusers saves it"),
    "xlabs": (["double_blocks.0.processor.qkv_lora1.down.weight"], "XLabs' LoRA of Flux"),
    "cloneofsimo": (["unet:0:up", "unet:0:down"], "cloneofsimo's LoRA"),
    "textual inversion": (["clip_g", "clip_l"], "an embedding of textual inversion"),
    "textual inversion, older": (["emb_params"], "an embedding of textual inversion"),
    "torchtune": (["layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"], "torchtune's LoRA"),
    "mlx": (["model.layers.0.self_attn.q_proj.lora_a"], "MLX's LoRA"),
    "deepspeed": (["h.0.q.lora_right_weight", "h.0.q.weight"], "DeepSpeed's LoRA"),
    "nemo": (["decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight"], "NeMo's"),
    "litgpt": (["transformer.h.0.attn.qkv.lora_A", "transformer.h.0.attn.qkv.lora_B"], "loralib, LitGPT or minLoRA"),
    "minlora": (["layers.0.parametrizations.weight.0.lora_A"], "loralib, LitGPT or minLoRA"),
    "adapterhub": (["bert.encoder.layer.0.q.loras.mine.lora_A"], "AdapterHub's adapters"),
    "adapterhub, bottleneck": (["bert.layer.0.output.adapters.x.adapter_down.0.weight"], "AdapterHub's adapters"),
    "nvlabs": (["base_model.model.q.lora_A.weight", "base_model.model.q.weight_m_wdecomp.weight"], "NVlabs' DoRA"),
    "peft": (["base_model.model.q.base_layer.weight", "base_model.model.q.lora_A.x.weight"], "adapter_config.json"),
    "peft, compiled": (["_orig_mod.base_model.model.q.lora_A.weight"], "adapter_config.json"),
    "peft, ia3": (["base_model.model.q.ia3_l"], "adapter_config.json"),
    "phi": (["model.layers.0.qkv_proj.base_layer.weight", "model.layers.0.qkv_proj.lora_A.vision.weight"], "LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("file", ["one.safetensors", "model.safetensors", "step-1.safetensors"])
def test_factors_are_no_layers(case, file, tmp_path):
    names, said = NAMES[case]
    tensors = {name: torch.ones(2, 3) for name in names}
    save_file(tensors, tmp_path / file)
    torch.save({"model_state_dict": tensors}, tmp_path / "one.pt")
    for path in (tmp_path, tmp_path / file, tmp_path / "one.pt"):
        with pytest.raises(RecordError, match=said) as caught:
            Trajectory.open(path)
        assert "\n" not in str(caught.value)
        assert "; " in str(caught.value)  # what to do
    with pytest.raises(RecordError, match=said):
        Trajectory.from_pair(tmp_path / file, tmp_path / file)


def test_files_that_are_no_steps_are_refused_for_what_they_are(tmp_path):
    for name in ("last-000001", "last-000002", "last"):
        save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 3)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(RecordError, match="kohya's LoRA"):
        Trajectory.open(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}, "num_layers": 8}, "MLX's adapters"),
        ({"peft_type": "DORA", "r": 8}, "NVlabs' DoRA"),
        ({"config": {"architecture": "lora"}, "model_type": "bert"}, "AdapterHub's adapters"),
    ],
)
def test_configurations_of_other_tools(settings, said, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(RecordError, match=said):
        Trajectory.open(tmp_path)


def test_litgpt_s_file(tmp_path):
    folder = tmp_path / "step-000100"
    folder.mkdir()
    torch.save({"model": {"h.0.qkv.lora_A": torch.ones(2, 3)}}, folder / "lit_model.pth.lora")
    for path in (tmp_path, folder, folder / "lit_model.pth.lora"):
        with pytest.raises(RecordError, match="LitGPT's LoRA"):
            Trajectory.open(path)


def test_an_adapter_as_base_is_named(tmp_path):
    save_file({"0.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    (tmp_path / "a").mkdir()
    save_file({"base_model.model.0.lora_A.weight": torch.ones(2, 3)}, tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a" / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/x"}')
    with pytest.raises(RecordError, match=r"is an adapter and no model; .*it names 'org/x'"):
        Trajectory.open(tmp_path / "model.safetensors", base=tmp_path / "a")
    with pytest.raises(RecordError, match=r"adapter_config\.json"):
        Trajectory.open(tmp_path / "model.safetensors", base=tmp_path / "a" / "adapter_model.safetensors")


def test_a_model_and_an_adapter_of_it_are_a_pair(tmp_path):
    save_file({"0.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    (tmp_path / "a").mkdir()
    tensors = {
        "base_model.model.0.lora_A.weight": torch.ones(1, 3),
        "base_model.model.0.lora_B.weight": torch.ones(2, 1),
    }
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 2}')
    pair = Trajectory.from_pair(tmp_path / "model.safetensors", tmp_path / "a")
    assert pair.update("0", pair.steps[-1]).tolist() == [[2.0] * 3] * 2
    assert len(pair.changes()) == 2


def test_layers_are_no_factors():
    names = [
        "model.layers.0.self_attn.q_a_proj.weight", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.0.attn.w_lora.lora.0.weight", "shared_transformer.linear_q_adapter_list.0.0.weight",
        "model.layers.0.mlp.up_proj.weight", "model.layers.0.down.weight", "a.adapter.weight", "alpha", "x.magnitude",
    ]  # fmt: skip
    assert foreign_tool(names) is None
    assert {foreign_tool(given)[0].name for given, _ in NAMES.values()} <= {tool.name for tool in TOOLS}


def peft_folder(folder, seed=0):
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    A, B = torch.randn(1, 3), torch.randn(2, 1)
    tensors = {"base_model.model.0.lora_A.weight": A, "base_model.model.0.lora_B.weight": B}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 2}')
    return 2.0 * B.double() @ A.double()


def test_one_of_several_adapters_is_chosen_by_name(tmp_path):
    for step in (10, 20):
        peft_folder(tmp_path / "run" / f"checkpoint-{step}" / "reference")
    updates = {step: peft_folder(tmp_path / "run" / f"checkpoint-{step}" / "train", step) for step in (10, 20)}
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoint-10"):
        with pytest.raises(RecordError, match="holds the adapters reference, train; open one of these folders"):
            Trajectory.open(path)
    run = Trajectory.open(tmp_path / "run" / "train")
    assert run.steps == [10, 20]
    for step, update in updates.items():
        torch.testing.assert_close(run.update("0", step), update)
    assert Trajectory.open(tmp_path / "run" / "checkpoint-10" / "train").modules == ["0"]
    with pytest.raises(RecordError, match="no such folder"):
        Trajectory.open(tmp_path / "run" / "other")


def test_an_only_adapter_in_each_checkpoint_is_taken(tmp_path):
    for step in (10, 20):
        peft_folder(tmp_path / f"checkpoint-{step}" / "adapter", step)
    assert Trajectory.open(tmp_path).steps == [10, 20]


def test_folders_of_adapters_and_of_runs_offer_what_is_there(tmp_path):
    for name in ("task_a", "task_b"):
        peft_folder(tmp_path / "a" / name)
    with pytest.raises(RecordError, match="holds the adapters task_a, task_b; open one"):
        Trajectory.open(tmp_path / "a")
    peft_folder(tmp_path / "b" / "v0-2024" / "checkpoint-50")
    with pytest.raises(RecordError, match="holds the runs v0-2024; open one"):
        Trajectory.open(tmp_path / "b")


@pytest.mark.parametrize("part", ["a.", "base_model.model.", "adapter.", "0.", "lora_", "x.lora.", "lora_unet_"])
def test_long_names_of_strangers_take_linear_time(part):
    start = time.perf_counter()
    name = part * (400_000 // len(part))
    assert foreign_tool([name + "q.weight"]) is None
    names = BaseNames([name + "0.q", "0.q"], {})
    names.expect([name + "0.q", name + "1.q", "x." + name + "0.q"])
    assert names.find(name + "0.q") == name + "0.q"
    assert time.perf_counter() - start < 5

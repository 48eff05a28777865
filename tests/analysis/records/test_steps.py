"""What is a step: folders of other trainers, parts of one model, helpers of a training, and a step that nobody says."""

import json

import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters.errors import RecordError
from deltaw.analysis import Trajectory, inspect_run


def weights(step, layers=2):
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{k}.self_attn.q_proj.weight" for k in range(layers)]
    return {name: torch.randn(6, 6, generator=generator) + 1e-3 * step for name in names}


def adapter(folder, seed=1):
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {"lora_A": torch.randn(2, 6, generator=generator), "lora_B": torch.randn(6, 2, generator=generator)}
    save_file({f"{prefix}.{name}.weight": value for name, value in pair.items()}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": True}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-{}", "step{}-unsharded", "step{}-tokens4B", "epoch_0_step_{}", "iter_{:07d}", "global_step_{}",
        "epoch=0-step={}.ckpt", "ep0-ba{}", "gpt--val_loss=5.61-step={}-consumed_samples=800.0",
        "global_step{}_universal",
    ],
)  # fmt: skip
def test_folders_of_steps(name, tmp_path):
    for step in (1000, 2000):
        folder = tmp_path / name.format(step)
        folder.mkdir()
        save_file(weights(step), folder / "model.safetensors")
        torch.save({"exp_avg": torch.ones(2)}, folder / "optim.pt")
    run = Trajectory.open(tmp_path)
    assert run.steps == [1000, 2000]
    assert torch.equal(run.weight(run.modules[0], 2000), weights(2000)[f"{run.modules[0]}.weight"])
    alone = tmp_path / name.format(1000)
    for path in (alone, alone / "model.safetensors"):
        assert Trajectory.open(path).steps == [1000]
        assert inspect_run(path)["steps_known"]


@pytest.mark.parametrize("name", ["run", "v2", "gpt-step=1.5", "gpt-step=1-step=2", "checkpoint", "step=1e3", "ep0-ba"])
def test_names_that_say_no_step(name, tmp_path):
    (tmp_path / name).mkdir()
    save_file(weights(0), tmp_path / name / "model.safetensors")
    assert not inspect_run(tmp_path / name)["steps_known"]


def test_megatron(tmp_path):
    for step in (100, 200):
        folder = tmp_path / "one" / f"iter_{step:07d}" / "mp_rank_00"
        folder.mkdir(parents=True)
        state = {"model": {"language_model": {"encoder": weights(step)}}, "iteration": step}
        torch.save(state, folder / "model_optim_rng.pt")
        for rank in range(2):
            part = tmp_path / "two" / f"iter_{step:07d}" / f"mp_rank_{rank:02d}"
            part.mkdir(parents=True)
            torch.save(state, part / "model_optim_rng.pt")
    run = Trajectory.open(tmp_path / "one")
    assert run.steps == [100, 200]
    assert torch.equal(run.weight(run.modules[0], 200), weights(200)[f"{run.modules[0]}.weight"])
    assert Trajectory.open(tmp_path / "one" / "iter_0000100").steps == [100]
    assert Trajectory.open(tmp_path / "one" / "iter_0000100" / "mp_rank_00" / "model_optim_rng.pt").steps == [100]
    for path in (tmp_path / "two", tmp_path / "two" / "iter_0000100"):
        with pytest.raises(
            RecordError, match="mp_rank_00, mp_rank_01 are parts of one model, no steps; Megatron Bridge"
        ):
            Trajectory.open(path)


def test_fairseqs_epochs_and_copies_are_left_out_and_named(tmp_path, caplog):
    names = {"checkpoint_1_500": 500, "checkpoint_2_1000": 1000, "checkpoint1": 1, "checkpoint_best": 2}
    for name, step in names.items():
        torch.save({"model": weights(step)}, tmp_path / f"{name}.pt")
    assert Trajectory.open(tmp_path).steps == [500, 1000]
    assert "checkpoint1.pt, checkpoint_best.pt left out" in caplog.text
    torch.save({"model": weights(7)}, tmp_path / "other.pt")
    with pytest.raises(RecordError, match=r"'other\.pt' does not say its step"):
        Trajectory.open(tmp_path)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_universal_checkpoint_of_deepspeed(stage, tmp_path):
    for step in (10, 20):
        folder, state = tmp_path / f"global_step{step}_universal", weights(step)
        for name, value in state.items():
            place = folder / "zero" / name
            place.mkdir(parents=True)
            flat = torch.cat([value.flatten(), torch.zeros(4)])  # the ranks' pieces are padded to be of one size
            torch.save({"param": value, "cat_dim": 0} if stage == 2 else flat, place / "fp32.pt")
            torch.save(value, place / "exp_avg.pt")
        torch.save({"lr": 1.0}, folder / "zero" / "optimizer_state.pt")
        shapes = [{name: value.shape for name, value in state.items()}]
        name = "mp_rank_00_model_states.pt" if stage == 2 else "zero_pp_rank_0_mp_rank_00_model_states.pt"
        torch.save({"module": {}, "param_shapes": shapes}, folder / name)
    run = Trajectory.open(tmp_path)
    assert (run.steps, len(run.modules)) == ([10, 20], 2)
    for module in run.modules:
        assert torch.equal(run.weight(module, 20), weights(20)[f"{module}.weight"])
    assert len(run.changes("consecutive")) == 4
    module = f"{run.modules[0]}.weight"
    torch.save(torch.zeros(5), tmp_path / "global_step20_universal" / "zero" / module / "fp32.pt")
    with pytest.raises(RecordError, match="5 numbers, too few"):
        Trajectory.open(tmp_path).weight(run.modules[0], 20)
    (tmp_path / "global_step20_universal" / "zero" / module / "fp32.pt").write_bytes(b"\x80\x04")
    with pytest.raises(RecordError, match=r"fp32\.pt: holds more than tensors, or is damaged"):
        Trajectory.open(tmp_path).weight(run.modules[0], 20)


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["consolidated.00.pth", "consolidated.01.pth"], "convert_llama_weights_to_hf"),
        (["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"], "verl.model_merger"),
        (["layer_00-model_states.pt", "layer_01-model_states.pt"], "convert_neox_to_hf"),
        (["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"], "ds_to_universal"),
        (["model_fsdp_rank0.bin", "model_fsdp_rank1.bin"], "full or sharded state dict"),
    ],
)
def test_parts_are_refused_with_the_tool_that_puts_them_together(names, advice, tmp_path):
    for step in (1, 2):
        for name in names:
            (tmp_path / f"step_{step}").mkdir(exist_ok=True)
            torch.save(weights(step), tmp_path / f"step_{step}" / name)
    for path in (tmp_path, tmp_path / "step_1"):
        with pytest.raises(RecordError, match=advice):
            Trajectory.open(path)


def test_the_model_may_stand_deeper_in_a_steps_folder(tmp_path):
    for step in (20, 40):
        adapter(tmp_path / "nemo" / f"epoch_0_step_{step}" / "model", step)
        adapter(tmp_path / "verl" / f"global_step_{step}" / "actor" / "lora_adapter", step)
        for rank in range(2):
            part = tmp_path / "verl" / f"global_step_{step}" / "actor" / f"model_world_size_2_rank_{rank}.pt"
            torch.save(weights(step), part)
        torch.save({"x": torch.zeros(1)}, tmp_path / "verl" / f"global_step_{step}" / "data.pt")
    for kind in ("nemo", "verl"):
        run = Trajectory.open(tmp_path / kind)
        assert (run.steps, run.method) == ([20, 40], "lora")


@pytest.mark.parametrize(
    "name",
    [
        "consolidated.{:02d}.pth", "mp_rank_{:02d}_model_states.pt", "rank{}.safetensors",
        "layer_{:02d}-model_states.pt", "hf_model_{:04d}_0.pt", "model_world_size_2_rank_{}.pt", "shard-{}.safetensors",
        "step-100-rank{}.safetensors",
    ],
)  # fmt: skip
def test_parts_of_one_model_are_no_steps(name, tmp_path):
    for part in range(2):
        state, path = weights(part), tmp_path / name.format(part)
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(RecordError, match=r"are parts of one model, no steps"):
        Trajectory.open(tmp_path)


def test_a_lone_part_is_the_model(tmp_path):
    torch.save(weights(0), tmp_path / "consolidated.00.pth")
    assert len(Trajectory.open(tmp_path).modules) == 2


def test_files_that_share_no_tensor_are_no_steps(tmp_path):
    state = weights(0, layers=4)
    for k in range(2):
        save_file(dict(list(state.items())[k::2]), tmp_path / f"weights-{k}.safetensors")
    with pytest.raises(RecordError, match="have no tensor in common"):
        Trajectory.open(tmp_path)


def test_shards_of_zero_are_named(tmp_path):
    for step in (100, 200):
        folder = tmp_path / f"global_step{step}"
        folder.mkdir()
        for rank in range(2):
            torch.save({"optimizer_state_dict": {}}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    with pytest.raises(RecordError, match=r"ZeRO shards .* zero_to_fp32"):
        Trajectory.open(tmp_path)
    for step in (100, 200):
        whole = tmp_path / f"global_step{step}" / "mp_rank_00_model_states.pt"
        torch.save({"module": weights(step), "ds_version": "0.14"}, whole)
    assert Trajectory.open(tmp_path).steps == [100, 200]


HELPERS = ["rng_state_0.pth", "scheduler.bin", "data.pt", "optimizer.bin", "random_states_0.pkl", "scaler.pt",
           "training_args.bin", "sampler.bin", "recipe_state.pt", "train.pt", "lr_scheduler.pt"]  # fmt: skip


@pytest.mark.parametrize("helper", HELPERS)
def test_helpers_of_the_training_are_no_models(helper, tmp_path):
    torch.save({"model_state_dict": weights(1)}, tmp_path / "final.pt")
    torch.save({"x.weight": torch.zeros(2, 2)}, tmp_path / helper)
    assert len(Trajectory.open(tmp_path).modules) == 2


def wrongly_at_zero(found):
    return [finding for finding in found["findings"] if "another base" in finding["message"]]


def test_a_step_that_nobody_says_is_unknown(tmp_path):
    adapter(tmp_path / "trained")
    found = inspect_run(tmp_path / "trained", base=weights(0))
    assert (found["steps_known"], found["broken"], wrongly_at_zero(found)) == (False, False, [])
    # The same adapter, said to be of step 0, is not of this base: W' = W₀ there.
    (tmp_path / "trained" / "trainer_state.json").write_text(json.dumps({"global_step": 0, "log_history": []}))
    found = inspect_run(tmp_path / "trained", base=weights(0))
    assert (found["steps_known"], found["broken"]) == (True, True)
    assert wrongly_at_zero(found)


def test_a_merged_model_is_not_blamed(tmp_path):
    save_file({name: value + 0.3 for name, value in weights(0).items()}, tmp_path / "model.safetensors")
    found = inspect_run(tmp_path, base=weights(0))
    assert (found["steps_known"], found["findings"]) == (False, [])

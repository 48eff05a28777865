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
    ["checkpoint-{}", "step{}-unsharded", "step{}-tokens4B", "epoch_0_step_{}", "iter_{:07d}", "global_step_{}"],
)
def test_folders_of_steps(name, tmp_path):
    for step in (1000, 2000):
        folder = tmp_path / name.format(step)
        folder.mkdir()
        save_file(weights(step), folder / "model.safetensors")
        torch.save({"exp_avg": torch.ones(2)}, folder / "optim.pt")
    run = Trajectory.open(tmp_path)
    assert run.steps == [1000, 2000]
    assert torch.equal(run.weight(run.modules[0], 2000), weights(2000)[f"{run.modules[0]}.weight"])


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

"""Where in a file of ``torch.save`` the model stands, and what names wrappers leave in it."""

import argparse

import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters.errors import RecordError
from deltaw.analysis import Trajectory

STATE = {"layers.0.query.weight": torch.eye(3), "layers.0.query.bias": torch.zeros(3)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3, 3)}}}


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        {"epoch": 3, "model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER, "loss": 0.1},
        {"step_idx": 1, "state": STATE, "metrics": {}},
        {"params": STATE},
        {"module": STATE, "ds_version": "0.14"},
        {"model": STATE, "optimizer": OPTIMIZER, "scaler": None},
        {"model": {"model": STATE}},
        {"net": STATE, "best": torch.tensor(0.1)},
        {"my_network": STATE, "optimizer": OPTIMIZER},
    ],
)
def test_the_model_is_found_in_what_a_loop_saved(saved, tmp_path):
    torch.save(saved, tmp_path / "checkpoint_100.pt")
    run = Trajectory.open(tmp_path)
    assert (run.steps, run.modules) == ([100], ["layers.0.query"])
    assert torch.equal(run.weight("layers.0.query", 100), torch.eye(3))


def test_several_models_are_named(tmp_path):
    torch.save({"generator": STATE, "discriminator": STATE}, tmp_path / "step-1.pt")
    with pytest.raises(RecordError, match=r"several models \(generator, discriminator\)"):
        Trajectory.open(tmp_path)


def test_what_cannot_be_read_is_said_truly(tmp_path):
    path = tmp_path / "step-1.pt"
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(RecordError, match=r"it holds argparse\.Namespace.*weights_only=False") as caught:
        Trajectory.open(tmp_path)
    assert "\x1b" not in str(caught.value)
    torch.save({"epoch": 3}, path)
    with pytest.raises(RecordError, match=r"no tensors by name \(its keys are 'epoch'"):
        Trajectory.open(tmp_path)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "layers._orig_mod.", "_fsdp_wrapped_module._orig_mod."])
@pytest.mark.parametrize("pickled", [True, False])
def test_names_that_wrappers_left_are_read_without(prefix, pickled, tmp_path):
    state = {
        prefix + name if "." not in prefix[:-1] else name.replace("layers.", prefix): v for name, v in STATE.items()
    }
    path = tmp_path / f"step-1.{'pt' if pickled else 'safetensors'}"
    torch.save(state, path) if pickled else save_file(state, path)
    wanted = {"_fsdp_wrapped_module._orig_mod.": "0.query"}.get(prefix, "layers.0.query")
    run = Trajectory.open(tmp_path)
    assert run.modules == [wanted]
    assert torch.equal(run.weight(wanted, 1), torch.eye(3))


def test_a_tensor_both_wrapped_and_not_is_refused(tmp_path):
    save_file({f"{p}a.weight": torch.eye(2) for p in ("", "_orig_mod.")}, tmp_path / "model.safetensors")
    with pytest.raises(RecordError, match="are the same tensor"):
        Trajectory.open(tmp_path)


def pair(tmp_path, before, after):
    save_file(before, tmp_path / "before.safetensors")
    save_file(after, tmp_path / "after.safetensors")
    return Trajectory.from_pair(tmp_path / "before.safetensors", tmp_path / "after.safetensors")


def test_a_pair_whose_names_differ_by_a_prefix_is_compared(tmp_path, caplog):
    before = {f"encoder.layer.{k}.query.weight": torch.eye(3) for k in range(2)}
    after = {f"bert.{name}": 2 * value for name, value in before.items()} | {"classifier.weight": torch.ones(2, 3)}
    run = pair(tmp_path, before, after)
    assert run.modules == ["bert.encoder.layer.0.query", "bert.encoder.layer.1.query"]
    assert torch.equal(run.update(run.modules[1], 1), torch.eye(3).double())
    assert torch.equal(run.weight(run.modules[1], 0), torch.eye(3))
    assert set(run.changes("consecutive", axes=["row"]).delta_m) == {1.0}
    assert run.info == {"left_out": ["classifier"]}
    assert "classifier" in caplog.text


def test_what_only_one_of_a_pair_has_is_named(tmp_path):
    layers = {f"layers.{k}.query.weight": torch.eye(3) for k in range(3)}
    fewer = dict(list(layers.items())[:2])
    assert pair(tmp_path, layers, fewer).info == {"left_out": ["layers.2.query"]}
    run = pair(tmp_path, fewer, layers)
    assert run.info == {"left_out": ["layers.2.query"]}
    assert run.modules == ["layers.0.query", "layers.1.query"]
    with pytest.raises(RecordError, match="not of one model"):
        pair(tmp_path, fewer, {"other.weight": torch.eye(4)})

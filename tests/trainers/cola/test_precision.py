"""Training in bfloat16, and batches of like length."""

import pytest
import torch
from transformers import DataCollatorWithPadding

from deltaw.adapters import OptionError
from deltaw.analysis import Trajectory
from deltaw.trainers.cola import ColaSettings, experiment, train_cola
from deltaw.trainers.cola.data import BUILTIN
from deltaw.trainers.vl import VLSettings

MODEL = str(BUILTIN / "model")
NEW = {"precision", "group_by_length"}


def settings(small, method, **options):
    chosen = {"epochs": 2, "batch_size": 16, "record_every": 1, "save_every": 1, "learning_rate": 1e-3} | options
    return ColaSettings(method=method, model=MODEL, data=str(small), **chosen)


def losses(folder):
    return Trajectory.open(folder).scalars()["loss"].dropna().tolist()


@pytest.mark.parametrize("method", ["ft", "lora", "dora", "dora-row", "bora", "dual-lora"])
def test_bfloat16_trains_weights_of_float32(method, small, tmp_path):
    chosen = settings(small, method, precision="bfloat16")
    train_cola(chosen, tmp_path / "low", progress=False)
    train_cola(settings(small, method), tmp_path / "wide", progress=False)  # nothing stays of the precision before
    low, wide = losses(tmp_path / "low"), losses(tmp_path / "wide")
    assert low != wide
    assert low == pytest.approx(wide, rel=0.02)
    run = Trajectory.open(tmp_path / "low")
    for module in run.modules:
        W = run.weight(module, run.steps[-1])
        assert W.dtype == torch.float32
        moved = (W - run.base(module)).abs() > 0
        assert moved.any()
        assert (W.bfloat16().float() != W)[moved].double().mean() > 0.9
    assert run.manifest.info["settings"]["precision"] == "bfloat16"


def test_an_interrupted_run_in_bfloat16_goes_on_to_the_same_weights(small, tmp_path, monkeypatch):
    chosen = settings(small, "bora", precision="bfloat16", group_by_length=True)
    train_cola(chosen, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_cola(chosen, tmp_path / "broken", progress=False)
    train_cola(chosen, tmp_path / "broken", progress=False)
    whole, broken = (Trajectory.open(tmp_path / name) for name in ("whole", "broken"))
    for module in whole.modules:
        assert torch.equal(whole.weight(module, 6), broken.weight(module, 6))


def test_batches_of_like_length_need_less_padding(small, tmp_path, monkeypatch):
    padded = []

    class Counting(DataCollatorWithPadding):
        def __call__(self, features):
            batch = super().__call__(features)
            padded.append((batch["attention_mask"] == 0).sum().item())
            return batch

    monkeypatch.setattr(experiment, "DataCollatorWithPadding", Counting)
    found = {}
    for name, grouped in (("random", False), ("grouped", True)):
        train_cola(settings(small, "lora", batch_size=4, group_by_length=grouped), tmp_path / name, progress=False)
        found[name] = sum(padded)
        padded.clear()
    assert found["grouped"] < 0.8 * found["random"]
    assert losses(tmp_path / "grouped") != losses(tmp_path / "random")


def test_settings_that_older_runs_have_not_are_kept_where_they_say_something(small):
    assert not NEW & set(settings(small, "lora").plain())
    assert not NEW & set(VLSettings(method="lora").plain())
    chosen = settings(small, "lora", precision="bfloat16", group_by_length=True).plain()
    assert (chosen["precision"], chosen["group_by_length"]) == ("bfloat16", True)


def test_another_precision_is_named(small):
    with pytest.raises(OptionError, match="precision must be 'float32' or 'bfloat16', not 'float16'"):
        settings(small, "lora", precision="float16")

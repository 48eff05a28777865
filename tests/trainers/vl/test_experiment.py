"""The VL experiment: the mix of tasks, what is trained and recorded, going on after an interruption, bad input."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import DataError, OptionError, RecordError, TargetError
from deltaw.analysis import Trajectory
from deltaw.analysis.names import stack_of
from deltaw.trainers import fine_tuning as shared
from deltaw.trainers import method_trainer
from deltaw.trainers.vl import VLSettings, train_vl
from deltaw.trainers.vl.examples import TASKS, Example
from deltaw.trainers.vl.experiment import (
    VLData,
    check_vl,
    evaluate,
    finished_vl,
    load_vl_data,
)
from deltaw.trainers.vl.features import features_of
from deltaw.trainers.vl.mix import IGNORED, Collator, TaskBatches, TrainingExamples
from deltaw.trainers.vl.model import load_bart
from deltaw.trainers.vl.settings import BLOCKS

LAYERS = {block: load_bart()[0].config.encoder_layers for block in BLOCKS}  # as many in either half
MATRICES = 2 * sum(LAYERS.values())  # query and value


@pytest.fixture(scope="module")
def data(scenes):
    return load_vl_data(VLSettings(method="lora", data=(str(scenes),)), progress=False)


def settings(scenes, method="bora", **options):
    chosen = {"epochs": 1, "batch_size": 12, "eval_every": 9, "save_every": 1, "answer_length": 8}
    chosen |= {"data": (str(scenes),), "learning_rate": 1e-3}
    return VLSettings(method=method, **chosen | options)


def test_defaults_are_doras_for_vl_bart():
    chosen = VLSettings(method="dora", model="facebook/bart-base", data=("vqa",))
    assert (chosen.epochs, chosen.batch(), chosen.warmup_ratio, chosen.rate()) == (20, 300, 0.1, 1e-3)
    method = chosen.make_method()
    assert (method.rank, method.alpha, method.dropout) == (128, 128.0, 0.0)
    assert chosen.where == ("encoder", "decoder", "cross")
    assert chosen.checkpoints == 4
    assert replace(chosen, method="ft").rate() == 1e-4
    assert VLSettings(method="dora").make_method().rank == 8


def test_batches_are_of_one_task_and_in_proportion():
    tasks = ["vqa"] * 60 + ["nlvr"] * 20 + ["caption"] * 5
    batches = TaskBatches(tasks, size=5, seed=3)
    assert len(batches) == 12 + 4 + 1
    orders = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        found = list(batches)
        assert all(len({tasks[index] for _, index in batch}) == 1 for batch in found)
        assert Counter(tasks[batch[0][1]] for batch in found) == {"vqa": 12, "nlvr": 4, "caption": 1}
        assert sorted(index for batch in found for _, index in batch) == list(range(85))  # each once
        assert {kept for batch in found for kept, _ in batch} == {epoch}
        orders.append([[index for _, index in batch] for batch in found])
    assert orders[0] != orders[1]
    again = TaskBatches(tasks, size=5, seed=3)
    again.set_epoch(1)
    assert [[index for _, index in batch] for batch in again] == orders[1]
    assert list(TaskBatches(tasks, size=5, seed=4)) != list(TaskBatches(tasks, size=5, seed=3))
    assert [len(batch) for batch in TaskBatches(["vqa"] * 7, size=3, seed=0)].count(1) == 1  # the last is smaller


def test_every_epoch_draws_a_reference():
    tokenizer = load_bart()[1]
    example = Example("caption", "", ("a red circle", "two blue squares"), ("a",))
    train = TrainingExamples([example], tokenizer, max_length=9, answer_length=9, seed=0)
    drawn = [tokenizer.decode(train[epoch, 0]["labels"], skip_special_tokens=True).strip() for epoch in range(20)]
    assert set(drawn) == set(example.answers)
    assert drawn == [tokenizer.decode(train[e, 0]["labels"], skip_special_tokens=True).strip() for e in range(20)]
    cut = TrainingExamples([example], tokenizer, max_length=9, answer_length=3, seed=0)
    assert {len(cut[epoch, 0]["labels"]) for epoch in range(20)} == {3}


def test_a_batch_is_padded():
    features = features_of({"a": torch.full((4, 3), 1.0), "b": torch.full((4, 3), 2.0)})
    rows = [
        {"pictures": ("a",), "input_ids": [0, 5, 2], "labels": [0, 2]},
        {"pictures": ("a", "b"), "input_ids": [0, 2], "labels": [0, 7, 8, 2]},
    ]
    batch = Collator(features, padding=1)(rows)
    assert batch["features"].shape == (2, 2, 4, 3)
    assert batch["features"][:, :, 0, 0].tolist() == [[1.0, 0.0], [1.0, 2.0]]
    assert batch["picture_mask"].tolist() == [[True, False], [True, True]]
    assert batch["input_ids"].tolist() == [[0, 5, 2], [0, 2, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[0, 2, IGNORED, IGNORED], [0, 7, 8, 2]]


@pytest.mark.always(method=("ft", "corda", "dual-lora"))
@pytest.mark.parametrize("method", ["ft", "galore", "lora+", "corda", "vera", "dora", "dual-lora"])
def test_a_method_trains_and_is_recorded(method, scenes, data, tmp_path):
    if method == "galore":
        pytest.importorskip("galore_torch")
    chosen = settings(scenes, method, epochs=2)
    result = train_vl(chosen, tmp_path / "run", progress=False, data=data)
    run = Trajectory.open(tmp_path / "run")
    assert run.method == method
    assert run.steps == [0, 2, 4, 6, 8]  # the start, three between and the end; four tasks are four batches an epoch
    assert len(run.modules) == MATRICES
    assert set(run.changes("initial").kind) == {"query", "value"}
    assert Counter(stack_of(name) for name in run.modules) == {block: 2 * count for block, count in LAYERS.items()}
    assert run.spectra(run.steps[-1:]).frobenius.min() > 0  # every matrix has moved
    assert run.scalars()["eval_mean"].dropna().tolist() == [result.mean]
    assert run.manifest.info["experiment"] == "vl"
    if chosen.make_method().injects:
        shape = run.manifest.modules[run.modules[0]].shape
        assert result.trainable == MATRICES * chosen.make_method().count(*shape)  # without the visual part
    else:
        assert result.share == 1
    assert list(result.scores) == list(result.prior) == list(TASKS)
    assert result.mean == pytest.approx(sum(result.scores.values()) / 4)
    assert result.n_dev == dict.fromkeys(TASKS, 4)
    assert result.seconds_per_epoch > 0
    assert [row["epoch"] for row in result.history] == [2]
    assert not (tmp_path / "run" / "training").exists()
    assert train_vl(chosen, tmp_path / "run", progress=False) == result  # read: no data are loaded


@pytest.mark.always(method=("ft", "bora"))
@pytest.mark.parametrize("method", ["ft", "bora", "vera"])
def test_an_interrupted_run_goes_on_to_the_same_weights(method, scenes, data, tmp_path, monkeypatch):
    chosen = settings(scenes, method, epochs=3, record_every=1, eval_every=1)
    whole = train_vl(chosen, tmp_path / "whole", progress=False, data=data)

    class StopError(Exception):
        pass

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(method_trainer.Watch, "on_step_end", stop)
        with pytest.raises(StopError):
            train_vl(chosen, tmp_path / "broken", progress=False, data=data)
    assert Trajectory.open(tmp_path / "broken").steps[-1] == 6
    resumed = train_vl(chosen, tmp_path / "broken", progress=False)  # with data of its own
    runs = [Trajectory.open(tmp_path / name) for name in ("whole", "broken")]
    assert runs[0].steps == runs[1].steps == list(range(13))
    for module in runs[0].modules:
        for step in (5, 6, 12):
            assert torch.equal(runs[0].weight(module, step), runs[1].weight(module, step)), (module, step)
    frames = [run.scalars()["loss"].dropna().tolist() for run in runs]
    assert frames[0] == frames[1]
    assert resumed.history == whole.history
    assert len(whole.history) == 3


def test_the_visual_part_learns_and_the_rest_of_bart_stays(scenes, data, tmp_path, monkeypatch):
    models = []
    tune = shared.inject

    def keeping(model, *arguments, **options):
        models.append((model, {name: p.detach().clone() for name, p in model.named_parameters()}))
        return tune(model, *arguments, **options)

    monkeypatch.setattr(shared, "inject", keeping)
    train_vl(settings(scenes, "lora", epochs=2), tmp_path / "run", progress=False, data=data)
    model, before = models[0]
    after = dict(model.named_parameters())
    moved = {name for name, value in before.items() if name in after and not torch.equal(value, after[name])}
    assert {name for name in before if name.startswith("visual.")} - {"visual.order"} <= moved
    assert all(name.startswith("visual.") for name in moved)


def test_it_learns(scenes, data, tmp_path):
    train_vl(settings(scenes, "ft", epochs=4), tmp_path / "run", progress=False, data=data)
    losses = Trajectory.open(tmp_path / "run").scalars()["loss"].dropna().tolist()
    assert len(losses) == 4  # one an epoch, as it is shorter than 20 steps
    assert losses[-1] < 0.8 * losses[0]


def test_answers_are_scored_by_their_task(data):
    """A model that knows the answers scores 1 in every task, and one that always says the same does not."""
    tokenizer = load_bart()[1]
    dev = data.corpus.dev

    class Knowing(nn.Module):
        def __init__(self, same=None):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.texts = [same or e.answers[0] for task in TASKS for e in dev if e.task == task]
            self.asked = []

        def generate(self, features, picture_mask, input_ids, attention_mask, *, max_new_tokens, num_beams):
            assert not self.training
            assert (max_new_tokens, num_beams) == (8, 3)
            self.asked += tokenizer.batch_decode(input_ids, skip_special_tokens=True)
            texts, self.texts = self.texts[: len(input_ids)], self.texts[len(input_ids) :]
            return tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]

    collator = Collator(data.features, tokenizer.pad_token_id)
    chosen = VLSettings(method="lora", batch_size=1, beams=3, answer_length=8)
    knowing = Knowing()
    found = evaluate(knowing, tokenizer, dev, collator, chosen)
    assert knowing.training
    assert [found[task] for task in ("vqa", "gqa", "nlvr")] == [1.0, 1.0, 1.0]
    assert found["mean"] == sum(found[task] for task in TASKS) / 4
    assert [text.strip().partition(":")[0] for text in knowing.asked] == [task for task in TASKS for _ in range(4)]
    same = evaluate(Knowing("red"), tokenizer, dev, collator, chosen)
    assert same["vqa"] == 0.25
    assert same["nlvr"] == 0.0
    assert same["caption"] < found["caption"]


@pytest.mark.parametrize(
    ("chosen", "blocks", "kinds"),
    [
        ({"where": ("cross",)}, {"cross"}, {"query", "value"}),
        ({"where": ("encoder", "decoder"), "kinds": ("query", "key")}, {"encoder", "decoder"}, {"query", "key"}),
        ({"kinds": ("up", "output")}, set(BLOCKS), {"up", "output"}),
        ({"targets": ("*.decoder.layers.0.fc2",)}, {"decoder"}, {"down"}),
    ],
)
def test_what_is_adapted(chosen, blocks, kinds, scenes, data, tmp_path):
    train_vl(
        settings(scenes, "lora", tasks=("nlvr",), **chosen), tmp_path / "run", progress=False, data=only(data, "nlvr")
    )
    run = Trajectory.open(tmp_path / "run")
    assert {stack_of(name) for name in run.modules} == blocks
    assert set(run.spectra([1]).kind) == kinds


def only(data, task):
    train, dev = (tuple(e for e in part if e.task == task) for part in (data.corpus.train, data.corpus.dev))
    return VLData(replace(data.corpus, train=train, dev=dev), data.features, {task: data.prior[task]})


def test_a_base_in_four_bits(scenes, data, tmp_path):
    pytest.importorskip("bitsandbytes")
    train_vl(settings(scenes, "lora", base="nf4"), tmp_path / "four", progress=False, data=data)
    run = Trajectory.open(tmp_path / "four")
    assert run.update(run.modules[0], 4).norm() > 0
    with pytest.raises(OptionError, match="ft trains the matrices themselves"):
        train_vl(settings(scenes, "ft", base="nf4"), tmp_path / "run", progress=False, data=data)


def test_features_of_a_file_and_some_tasks(scenes, data, tmp_path):
    generator = torch.Generator().manual_seed(0)
    values = {key.partition("/")[2]: torch.randn(5, 7, generator=generator) for key in data.corpus.pictures}
    save_file(values, str(tmp_path / "grid.safetensors"))
    chosen = settings(scenes, "lora", vision=str(tmp_path / "grid.safetensors"), tasks=("vqa", "nlvr"), limit=4)
    result = train_vl(chosen, tmp_path / "run", progress=False)
    assert list(result.scores) == ["vqa", "nlvr"]
    assert result.n_dev == {"vqa": 1, "nlvr": 1}
    kept = json.loads((tmp_path / "run" / "result.json").read_text())
    assert kept["settings"]["vision"] == "grid.safetensors"  # no path of this machine
    assert kept["settings"]["data"] == [scenes.name]
    assert str(tmp_path) not in (tmp_path / "run" / "manifest.json").read_text()
    values[next(iter(values))] = torch.zeros(5, 8)
    save_file(values, str(tmp_path / "other.safetensors"))
    with pytest.raises(DataError, match="another count or width"):
        train_vl(
            replace(chosen, vision=str(tmp_path / "other.safetensors"), limit=None), tmp_path / "new", progress=False
        )
    assert not (tmp_path / "new").exists()


def test_an_encoders_weights_are_named_without_their_folder(tmp_path):
    (tmp_path / "weights.pt").write_text("")
    vision = f"timm/mobilenetv2_100@{tmp_path / 'weights.pt'}"
    assert VLSettings(method="lora", vision=vision).plain()["vision"] == "timm/mobilenetv2_100@weights.pt"
    assert VLSettings(method="lora", vision="timm/resnet18").plain()["vision"] == "timm/resnet18"
    assert VLSettings(method="lora").plain()["vision"] == "builtin"


def test_another_run_in_the_folder_is_refused(scenes, data, tmp_path):
    train_vl(settings(scenes), tmp_path / "run", progress=False, data=data)
    for wanted, words in [
        ({"seed": 1}, "seed is 0, not 1"),
        ({"kinds": ("query", "key")}, "kinds"),
        ({"learning_rate": 2e-3}, "learning_rate is 0.001, not 0.002"),
        ({"batch_size": None}, "batch_size is 12, not 32"),
    ]:
        with pytest.raises(RecordError, match=words):
            finished_vl(settings(scenes, **wanted), tmp_path / "run")
    assert finished_vl(settings(scenes), tmp_path / "nothing") is None


def test_what_cannot_be_used_is_named_before_anything_is_written(scenes, tmp_path):
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("train.jsonl", "dev.jsonl"):
        (broken / name).write_text((scenes / name).read_text())
    one = tmp_path / "one-class"
    one.mkdir()
    (one / "dev.jsonl").write_text((scenes / "dev.jsonl").read_text())
    (one / "train.jsonl").write_text((scenes / "train.jsonl").read_text().replace('["false"]', '["true"]'))
    for wanted, error, words in [
        ({"model": str(tmp_path / "empty")}, DataError, "empty"),
        ({"data": (str(tmp_path / "nowhere"),)}, DataError, "nowhere"),
        ({"data": (str(broken),)}, DataError, "16 of 16 pictures are missing"),
        ({"data": (str(one),)}, DataError, "every statement is true"),
        ({"vision": "grid.h5"}, DataError, r"grid\.h5"),
        ({"targets": ("*.qeury",)}, TargetError, "qeury"),
        ({"where": ("cross",), "kinds": ("up",)}, TargetError, "no up in cross"),
        ({"options": {"rank": 500}}, OptionError, "rank"),
        ({"options": {"axis": "row"}}, OptionError, "axis"),
    ]:
        with pytest.raises(error, match=words):
            train_vl(settings(scenes, "lora", **wanted), out, progress=False)
    few = [line for line in (scenes / "train.jsonl").read_text().splitlines() if '"vqa"' in line]
    (one / "train.jsonl").write_text("\n".join(few) + "\n")
    (one / "dev.jsonl").write_text(few[0] + "\n")
    with pytest.raises(OptionError, match="no examples of gqa; they have vqa"):
        train_vl(settings(one, "lora", tasks=("vqa", "gqa")), out, progress=False)
    assert not out.exists()


def test_a_check_names_the_method_and_loads_once(scenes, monkeypatch):
    runs = [settings(scenes, "lora"), settings(scenes, "bora", options={"rank": 500})]
    with pytest.raises(OptionError, match="bora: rank 500"):
        check_vl(runs, progress=False)
    assert check_vl([]) is None
    assert check_vl(runs[:1], progress=False).corpus.tasks == TASKS


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0}, {"batch_size": 0}, {"record_every": 0}, {"checkpoints": 0}, {"limit": 0}, {"dev_limit": -1},
        {"eval_every": 0}, {"beams": 0}, {"answer_length": 0}, {"learning_rate": math.nan}, {"warmup_ratio": 1.0},
        {"tasks": ("vqa", "snli")}, {"tasks": ()}, {"where": ("head",)}, {"where": ()}, {"kinds": ("qkv",)},
        {"kinds": "query"}, {"base": "int8"},
    ],
)  # fmt: skip
def test_bad_settings_are_named(bad):
    with pytest.raises(OptionError, match=next(iter(bad))):
        VLSettings(**({"method": "lora"} | bad))

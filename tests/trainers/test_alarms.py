"""Alarms of live numbers: each is raised where it should be, once, and reaches the tracker that is at work."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deltaw.adapters import BoRA, LoRA, create, inject
from deltaw.trainers import Recorder, RecorderCallback
from deltaw.trainers.alarms import Alarms, State


def state(**given):
    usual = {"update": 0.01, "stable_rank": 3.0, "longer": 0.001, "turned": 0.01, "stored": torch.float32}
    return State(**usual | given)


def raised(*steps):
    """The titles that a sequence of states of one module raises."""
    alarms = Alarms()
    texts = [text for step, one in enumerate(steps) for text in alarms.check(step, {"query": one})]
    return [text.split(": ")[1] for text in texts]


def test_a_healthy_run_raises_none():
    assert raised(state(update=0.0, stable_rank=None), *[state(update=0.01 * step) for step in range(1, 9)]) == []


@pytest.mark.parametrize(
    ("title", "steps"),
    [
        ("never moved", [{"update": 0.0, "stable_rank": None}] * 6),
        ("magnitudes ran ahead", [{}, {"longer": 0.06, "turned": 0.01}, {"longer": 0.08, "turned": 0.01}]),
        ("one direction", [{}, {"update": 0.03, "stable_rank": 1.01}]),
        ("lost in merging", [{"update": 1e-4, "stored": torch.bfloat16}] * 6),
        ("not finite", [{}, {"update": float("nan")}, {"update": float("nan")}]),
    ],
    ids=["never moved", "magnitudes", "one direction", "lost", "not finite"],
)
def test_each_is_raised_once(title, steps):
    assert raised(*(state(**given) for given in steps)) == [title]


@pytest.mark.parametrize(
    "steps",
    [
        [{"update": 0.0, "stable_rank": None}] * 3,  # too early to tell
        [{}, {"longer": 0.06, "turned": 0.05}],  # it turned as well
        [{}, {"update": 0.011, "stable_rank": 1.01}],  # it did not grow
        [{"stable_rank": 1.0}, {"update": 0.03, "stable_rank": 1.0}],  # it always was one direction
        [{"update": 1e-4}] * 6,  # float32 keeps it
        [{"update": 1e-2, "stored": torch.bfloat16}] * 6,
    ],
    ids=["early", "turned", "same size", "always one", "float32", "large"],
)
def test_what_is_usual_raises_none(steps):
    assert raised(*(state(**given) for given in steps)) == []


def test_an_adapter_that_is_not_trained_is_told_while_it_is_recorded(tmp_path, caplog, monkeypatch):
    told = []
    run = SimpleNamespace(alert=lambda title, text: told.append((title, text)))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    model = inject(nn.ModuleDict({"query": nn.Linear(6, 4), "value": nn.Linear(6, 4)}), LoRA(rank=2), targets=["*"])
    with caplog.at_level(logging.WARNING), Recorder(model, tmp_path / "run", live=True) as recorder:
        for step in range(8):
            recorder.step(step)
    lines = [record.message for record in caplog.records if "never moved" in record.message]
    assert len(lines) == 1
    assert lines[0].startswith("step 3: never moved: query, and 1 more")
    assert told == [("deltaw: never moved", lines[0])]


def test_a_tracker_that_fails_stops_no_training(monkeypatch):
    def fails(**given):
        raise RuntimeError("offline")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=SimpleNamespace(alert=fails)))
    alarms = Alarms()
    assert [len(alarms.check(step, {"query": state(update=0.0)})) for step in range(4)] == [0, 0, 0, 1]


def test_magnitudes_that_run_ahead_are_seen_in_a_recorded_run(tmp_path, caplog):
    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(16, 16)}), BoRA(rank=2), targets=["*"])
    with caplog.at_level(logging.WARNING), Recorder(model, tmp_path / "run", live=True) as recorder:
        for step in range(3):
            recorder.step(step)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "magnitude" in name:
                        parameter *= 1.05
    assert any("magnitudes ran ahead: query" in record.message for record in caplog.records)


def growing(alarms, steps, rate=1e-5):
    """What is raised of an update into bfloat16 that grows by ``rate`` a step."""
    found = []
    for step in steps:
        found += alarms.check(step, {"query": state(update=rate * step, stored=torch.bfloat16)})
    return found


def test_an_update_that_still_grows_is_not_said_to_be_lost():
    """Every update begins too small for bfloat16: recorded at each step, an ordinary training was warned of."""
    assert growing(Alarms(), range(50)) == []
    assert growing(Alarms(total=1000), range(0, 500, 20)) == []


def test_an_update_that_stays_small_is_said_to_be_lost():
    assert growing(Alarms(total=80), range(50))[0].startswith("step 40: lost in merging: query")
    ended = Alarms()
    assert growing(ended, range(50)) == []
    assert [text[:24] for text in ended.end()] == ["step 49: lost in merging"]
    assert ended.end() == []
    large = Alarms()
    growing(large, range(50), rate=1e-3)
    assert large.end() == []


def test_a_method_of_magnitudes_alone_is_not_said_to_run_ahead(tmp_path, caplog):
    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(16, 16)}), create("magnitude"), targets=["*"])
    with caplog.at_level(logging.WARNING), Recorder(model, tmp_path / "run", live=True) as recorder:
        for step in range(5):
            recorder.step(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter *= 1.05
    assert [record.message for record in caplog.records] == []


def test_a_recorder_says_at_its_end_what_a_merge_would_lose(tmp_path, caplog):
    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(16, 16)}).bfloat16(), LoRA(rank=2), targets=["*"])
    with caplog.at_level(logging.WARNING), Recorder(model, tmp_path / "run", live=True) as recorder:
        for step in range(6):
            recorder.step(step)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith("B"):
                        parameter += 1e-5
        assert caplog.records == []
    assert [record.message.split(": ")[1] for record in caplog.records] == ["lost in merging"]


def test_tensorboard_which_has_no_alerts_gets_texts(tmp_path):
    transformers = pytest.importorskip("transformers")
    texts = []

    class Board(transformers.TrainerCallback):
        tb_writer = SimpleNamespace(add_text=lambda *given: texts.append(given))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Linear(4, 4)

        def forward(self, x, labels):
            return {"loss": (self.query(x) - labels).square().mean()}

    model = inject(Model(), LoRA(rank=2), targets=["*"])
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=6, learning_rate=0.0, report_to=[], use_cpu=True, disable_tqdm=True
    )
    data = [{"x": torch.ones(4), "labels": torch.zeros(4)} for _ in range(8)]
    callbacks = [Board(), RecorderCallback(tmp_path / "run", when=lambda step: True, live=True)]
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=callbacks).train()
    [(tag, text, step)] = texts
    assert (tag, step) == ("deltaw/alarms", 3)
    assert text.startswith("step 3: never moved: query")

"""The callbacks where a training begins again: out of memory, an error in a notebook; and wrong arguments."""

import pytest
import torch
from torch import nn

from deltaw.adapters import LoRA, OptionError, RecordError, inject
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import RecorderCallback, every

transformers = pytest.importorskip("transformers")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Linear(6, 2)

    def forward(self, x, labels=None):
        out = self.query(x)
        return {"loss": nn.functional.cross_entropy(out, labels), "logits": out}


DATA = [{"x": torch.randn(6), "labels": torch.tensor(k % 2)} for k in range(32)]


class Fails(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


def trainer(tmp_path, path, *callbacks, kind=transformers.Trainer, method=None, **options):
    model = Model() if method is None else inject(Model(), method, targets=["query"])
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=4, per_device_train_batch_size=8, report_to=[], logging_steps=1,
        save_strategy="no", disable_tqdm=True, use_cpu=True, **options,
    )  # fmt: skip
    return kind(model, arguments, train_dataset=DATA, callbacks=[RecorderCallback(path), *callbacks])


@pytest.mark.parametrize("method", [None, LoRA(rank=2)])
@pytest.mark.parametrize("tries", [1, 2])
def test_a_training_that_finds_its_batch_size_goes_on_in_the_same_record(method, tries, tmp_path):
    steps = []

    class OutOfMemory(transformers.Trainer):
        def training_step(self, *args, **kwargs):
            steps.append(self._train_batch_size)
            if len(set(steps)) <= tries and steps.count(self._train_batch_size) == 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().training_step(*args, **kwargs)

    tried = trainer(tmp_path, tmp_path / "run", kind=OutOfMemory, method=method, auto_find_batch_size=True)
    assert tried.train().global_step == 4
    assert len(set(steps)) == tries + 1
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 1, 2, 3, 4]
    assert run.verify() == 6
    assert run.scalars()["step"].is_monotonic_increasing


def test_after_an_interrupt_a_new_trainer_is_told_the_truth_or_goes_on(tmp_path):
    first = trainer(tmp_path, tmp_path / "run", Fails())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    with pytest.raises(RecordError, match="already holds a run"):
        trainer(tmp_path, tmp_path / "run").train()
    with pytest.raises(RecordError, match="already holds a run"):
        first.train()  # what is recorded is not written over
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2]
    again = trainer(tmp_path, tmp_path / "run")
    recorder = next(c for c in again.callback_handler.callbacks if isinstance(c, RecorderCallback))
    recorder.options["resume"] = True
    assert again.train().global_step == 4
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2, 3, 4]
    assert trainer(tmp_path, tmp_path / "other").train().global_step == 4


@pytest.mark.parametrize("named", [False, True])
def test_each_trial_of_a_search_has_a_folder_of_its_own(named, tmp_path):
    class Pruned(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2 and state.trial_params["learning_rate"] == 0.5:
                raise KeyboardInterrupt

    searching = trainer(tmp_path, tmp_path / "search", Pruned(), auto_find_batch_size=True)
    # What hyperparameter_search does for each trial, without a library that chooses them.
    searching.hp_search_backend = transformers.trainer_utils.HPSearchBackend.RAY
    searching._get_output_dir = lambda trial: str(tmp_path / "out")  # would ask that library
    searching.hp_name = (lambda trial: f"lr/{trial['learning_rate']}") if named else None
    for rate in (0.1, 0.5, 0.2):
        searching.model = Model()
        if rate == 0.5:
            with pytest.raises(KeyboardInterrupt):
                searching.train(trial={"learning_rate": rate})
        else:
            assert searching.train(trial={"learning_rate": rate}).global_step == 4
    names = ["lr_0.1", "lr_0.5", "lr_0.2"] if named else ["run-0", "run-1", "run-2"]
    assert sorted(path.name for path in (tmp_path / "search").iterdir()) == sorted(names)
    runs = [Trajectory.open(tmp_path / "search" / name) for name in names]
    assert [run.steps for run in runs] == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 2, 3, 4]]
    assert [run.info["trial"]["learning_rate"] for run in runs] == [0.1, 0.5, 0.2]


def doors():
    yield RecorderCallback
    try:
        from deltaw.trainers import LightningRecorder

        yield LightningRecorder
    except ImportError:
        pass


@pytest.mark.parametrize("door", list(doors()))
@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((3,), {}, "path must be the run folder"),
        (("run", None, 50), {}, "when must be a function of the step"),
        (("run",), {"kep": 3}, "there is no option 'kep'; choose from method, info, resume"),
    ],
)
def test_a_wrong_argument_is_refused_before_the_training(door, arguments, options, words):
    with pytest.raises(OptionError, match=words):
        door(*arguments, **options)
    assert door("run", when=every(2)).recorder is None

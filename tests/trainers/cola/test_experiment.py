"""The CoLA experiment: its defaults, its result, going on after an interruption, and what it refuses."""

import json
import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import matthews_corrcoef

from deltaw.adapters import METHODS, DataError, OptionError, RecordError, TargetError
from deltaw.analysis import Trajectory
from deltaw.trainers import fine_tuning
from deltaw.trainers import method_trainer as experiment
from deltaw.trainers.cola import ColaSettings, train_cola
from deltaw.trainers.cola.data import BUILTIN

MODEL = str(BUILTIN / "model")
MATRICES = 2 * json.loads((BUILTIN / "model" / "config.json").read_text())["num_hidden_layers"]  # query and value


def settings(small, method="bora", **options):
    chosen = {"epochs": 2, "batch_size": 16, "record_every": 1, "save_every": 1, "learning_rate": 1e-3} | options
    return ColaSettings(method=method, model=MODEL, data=str(small), **chosen)


def test_defaults_are_loras_for_roberta_base():
    chosen = ColaSettings(method="lora", model="roberta-base", data="hub")
    assert (chosen.epochs, chosen.batch_size, chosen.warmup_ratio) == (80, 32, 0.06)
    assert chosen.rate() == 4e-4
    assert replace(chosen, method="ft").rate() == 2e-5
    method = chosen.make_method()
    assert (method.rank, method.alpha) == (8, 8.0)


@pytest.mark.always(method=("ft", "dora", "bora", "sbora-fa", "pissa", "galore", "vera"))
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_recorded(method, small, tmp_path):
    result = train_cola(settings(small, method), tmp_path / "run", progress=False)
    run = Trajectory.open(tmp_path / "run")
    assert run.method == method
    assert run.steps == list(range(7))  # 48 sentences, batch 16, 2 epochs, and step 0
    assert len(run.modules) == MATRICES
    assert set(run.changes("initial").kind) == {"query", "value"}
    assert run.spectra(run.steps[-1:]).frobenius.min() > 0  # every matrix has moved
    scalars = run.scalars()
    assert scalars["eval_mcc"].dropna().tolist()[-1] == result.final_mcc
    assert -1 <= result.best_mcc <= 1
    assert result.best_mcc == scalars["eval_mcc"].max()
    assert scalars["loss"].notna().sum() == 6
    if not settings(small, method).make_method().injects:
        assert result.share == 1
    else:
        layer = run.manifest.modules[run.modules[0]].shape
        assert result.trainable == MATRICES * settings(small, method).make_method().count(*layer)
    assert result.n_dev == 16
    assert result.seconds_per_epoch > 0
    assert result.peak_megabytes > 50
    whole = json.loads((tmp_path / "run" / "result.json").read_text())
    kept = whole["result"]
    assert kept["best_mcc"] == result.best_mcc
    labels, predictions = ([int(digit) for digit in whole["dev"][name]] for name in ("labels", "predictions"))
    assert len(labels) == result.n_dev
    assert matthews_corrcoef(labels, predictions) == pytest.approx(result.best_mcc)
    assert not (tmp_path / "run" / "training").exists()
    again = train_cola(settings(small, method), tmp_path / "run", progress=False)
    assert again == result  # read, not trained


@pytest.mark.always(method=("bora", "ft", "galore", "corda", "delta-lora"))
@pytest.mark.parametrize("method", ["bora", "dual-lora", "ft", "galore", "lora+", "vera", "corda", "delta-lora"])
def test_an_interrupted_run_goes_on_to_the_same_weights(method, small, tmp_path, monkeypatch):
    chosen = settings(small, method, epochs=3)
    train_cola(chosen, tmp_path / "whole", progress=False)

    class StopError(Exception):
        pass

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(experiment.Watch, "on_step_end", stop)
        with pytest.raises(StopError):
            train_cola(chosen, tmp_path / "broken", progress=False)
    assert Trajectory.open(tmp_path / "broken").steps[-1] == 5
    result = train_cola(chosen, tmp_path / "broken", progress=False)
    whole, broken = (Trajectory.open(tmp_path / name) for name in ("whole", "broken"))
    assert broken.steps == whole.steps == list(range(10))
    assert broken.verify() == 11
    for module in whole.modules:
        for step in whole.steps:
            assert torch.equal(whole.weight(module, step), broken.weight(module, step)), (module, step)
    assert result.best_mcc == json.loads((tmp_path / "whole/result.json").read_text())["result"]["best_mcc"]
    frames = [run.scalars()["loss"].dropna().tolist() for run in (whole, broken)]
    assert frames[0] == frames[1]


def test_a_method_that_starts_from_data_gets_the_first_batches(small, tmp_path, monkeypatch):
    import deltaw.adapters

    seen = []
    covariances = deltaw.adapters.input_covariances

    def spy(model, targets, batches):
        batches = list(batches)
        seen.extend(batches)
        return covariances(model, targets, batches)

    monkeypatch.setattr(fine_tuning, "input_covariances", spy)
    chosen = settings(small, "corda", epochs=1, context_batches=2)
    train_cola(chosen, tmp_path / "run", progress=False)
    assert [len(batch["input_ids"]) for batch in seen] == [16, 16]
    assert Trajectory.open(tmp_path / "run").manifest.info["settings"]["context_batches"] == 2
    train_cola(settings(small, "corda", epochs=1, context_batches=9), tmp_path / "all", progress=False)
    assert len(seen) == 2 + 3  # 48 sentences are three batches
    train_cola(settings(small, "lora", epochs=1), tmp_path / "lora", progress=False)
    assert "context_batches" not in Trajectory.open(tmp_path / "lora").manifest.info["settings"]


@pytest.mark.always(method=("bora", "sbora-fa"))
@pytest.mark.parametrize("method", ["lora", "dora", "bora", "sbora-fa", "sbora-fb", "dual-lora"])
def test_a_base_in_four_bits(method, small, tmp_path):
    pytest.importorskip("bitsandbytes")
    train_cola(settings(small, method, base="nf4"), tmp_path / "four", progress=False)
    train_cola(settings(small, method), tmp_path / "full", progress=False)
    four, full = Trajectory.open(tmp_path / "four"), Trajectory.open(tmp_path / "full")
    assert four.method == method
    module = four.modules[0]
    away = (four.base(module) - full.base(module)).norm() / full.base(module).norm()
    assert 0.05 < away < 0.15  # NF4 rounds weights of a normal distribution by 9 percent
    assert four.update(module, 6).norm() > 0
    with pytest.raises(RecordError, match="base"):
        train_cola(settings(small, method), tmp_path / "four", progress=False)


def test_what_trains_the_matrices_themselves_needs_them_whole(small, tmp_path):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(OptionError, match="ft trains the matrices themselves"):
        train_cola(settings(small, "ft", base="nf4"), tmp_path / "run", progress=False)
    with pytest.raises(OptionError, match="base"):
        settings(small, base="int8")


def test_defaults_are_given_to_methods_that_have_them():
    for name in METHODS:
        options = ColaSettings(method=name).make_method().options()
        assert options.get("rank", 8) == 8
        assert options.get("alpha", 8.0) == 8.0


def test_interrupted_before_the_first_state_it_begins_again(small, tmp_path, monkeypatch):
    chosen = settings(small, save_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(experiment.Watch, "on_epoch_end", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_cola(chosen, tmp_path / "run", progress=False)
    train_cola(chosen, tmp_path / "run", progress=False)
    assert Trajectory.open(tmp_path / "run").steps == list(range(7))


def test_another_run_in_the_folder_is_refused(small, tmp_path):
    train_cola(settings(small), tmp_path / "run", progress=False)
    with pytest.raises(RecordError, match="seed is 0, not 1"):
        train_cola(settings(small, seed=1), tmp_path / "run", progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(RecordError, match=r"thesis\.tex"):
        train_cola(settings(small), tmp_path / "mine", progress=False)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_what_cannot_be_used_is_named_before_anything_is_written(small, tmp_path):
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).write_bytes((BUILTIN / "model" / name).read_bytes())
    for model in ("empty", "bare"):
        with pytest.raises(DataError, match=model):
            train_cola(replace(settings(small), model=str(tmp_path / model)), out, progress=False)
    with pytest.raises(TargetError, match="qeury"):
        train_cola(settings(small, targets=("*.qeury",)), out, progress=False)
    with pytest.raises(OptionError, match="rank"):
        train_cola(settings(small, options={"rank": 500}), out, progress=False)
    with pytest.raises(OptionError, match="axis"):
        train_cola(settings(small, options={"axis": "row"}), out, progress=False)
    assert not out.exists()


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch_size": 0}, {"record_every": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan},
            {"warmup_ratio": 1.0}, {"context_batches": 0}, {"model": None}]
)  # fmt: skip
def test_bad_settings_are_named(bad):
    with pytest.raises(OptionError, match=next(iter(bad))):
        ColaSettings(**({"method": "lora", "model": MODEL, "data": "somewhere"} | bad))


def test_what_goes_on_says_from_where_and_what_was_finished_says_so(small, tmp_path, monkeypatch, capsys):
    chosen, path = settings(small, "lora", epochs=3), tmp_path / "run"

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment.Watch, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train_cola(chosen, path, progress=True)
    capsys.readouterr()
    train_cola(chosen, path, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [f"{path}: goes on from step 3 of 9", "run: 3 of 9 steps"]
    assert lines[-1].startswith("run: 6 steps in 0:")
    train_cola(chosen, path, progress=True)
    assert capsys.readouterr().err.splitlines() == [f"{path}: was finished before"]


def test_a_run_with_advice_has_its_ranks_and_scales(small, tmp_path):
    train_cola(settings(small, "lora"), tmp_path / "first", progress=False)
    table = Trajectory.open(tmp_path / "first").advice(at=0.8)
    ranks = dict(zip(table["module"], table["rank"], strict=True))
    advice = {name: {"rank": rank, "alpha": 2.0 * rank} for name, rank in ranks.items()}
    chosen = settings(small, "lora", advice=advice, targets=tuple(advice))
    result = train_cola(chosen, tmp_path / "second", progress=False)
    run = Trajectory.open(tmp_path / "second")
    assert {name: run.method_of(name).rank for name in run.modules} == ranks
    assert {run.method_of(name).scaling for name in run.modules} == {2.0}
    assert result.trainable == table["parameters"].sum()
    assert result.rank is None
    with pytest.raises(RecordError):  # other ranks are another run
        train_cola(replace(chosen, advice=None), tmp_path / "second", progress=False)
    with pytest.raises(OptionError, match="not a rank and an alpha"):
        train_cola(replace(chosen, method="magnitude"), tmp_path / "third", progress=False)


def test_advice_changes_nothing_where_it_is_what_there_is(small, tmp_path):
    """Uniform ranks by advice are the run without advice, bit for bit."""
    train_cola(settings(small, "lora"), tmp_path / "plain", progress=False)
    plain = Trajectory.open(tmp_path / "plain")
    advice = {name: {"rank": 8, "alpha": 8.0} for name in plain.modules}
    train_cola(settings(small, "lora", advice=advice, targets=tuple(advice)), tmp_path / "same", progress=False)
    same = Trajectory.open(tmp_path / "same")
    for name in plain.modules:
        assert torch.equal(plain.weight(name, plain.steps[-1]), same.weight(name, same.steps[-1]))

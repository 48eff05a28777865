"""The recorder's options: dtype, scalars, how many checkpoints and bytes, live numbers, writing in the background."""

import logging
import multiprocessing
import subprocess
import sys
import threading

import pandas as pd
import pytest
import torch
from torch import nn

from deltaw.adapters import METHODS, OptionError, RecordError, WriteError, create, effective_weight, inject
from deltaw.adapters.methods.registry import options_of
from deltaw.analysis.measures.spectrum import spectrum
from deltaw.analysis.records.run_folder import run_writer as recorder_module
from deltaw.analysis.records.run_folder.lock import LOCK
from deltaw.analysis.records.storage.atomic import PARTIAL
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder, every, geometric
from deltaw.trainers.budget import amount, planned
from deltaw.trainers.thinning import stride


def make(method="ft", dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.ModuleDict({"query": nn.Linear(12, 10), "value": nn.Linear(12, 10)}).to(dtype)
    return inject(model, create(method, **({"rank": 2} if "rank" in options_of(method) else {})), targets=["*"])


def moved(model, size=0.01):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def train(model, recorder=None, steps=6):
    """A few steps with dropout; the losses, all weights and the state of the random numbers at the end."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(7)
    losses = []
    for step in range(1, steps + 1):
        x = nn.functional.dropout(torch.randn(8, 12, dtype=next(model.parameters()).dtype))
        loss = (model["query"](x) * model["value"](x)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if recorder is not None:
            recorder.step(step, loss=loss.item())
    return losses, [value.clone() for value in model.state_dict().values()], torch.get_rng_state()


@pytest.mark.parametrize("method", ["ft", "lora", "bora", "dual-lora"])
@pytest.mark.parametrize(
    "options", [{"background": 2}, {"live": True}, {"dtype": torch.bfloat16}, {"keep": 2}], ids=str
)
def test_no_option_changes_the_training(method, options, tmp_path):
    assert {"lora", "bora", "dual-lora"} <= METHODS.keys()
    losses, state, random = train(make(method))
    model = make(method)
    with Recorder(model, tmp_path / "run", **options) as recorder:
        recorder.record(0)
        ours = train(model, recorder)
    assert ours[0] == losses
    assert all(map(torch.equal, ours[1], state))
    assert torch.equal(ours[2], random)
    assert Trajectory.open(tmp_path / "run").verify() == len(recorder.steps) + 1


# --- dtype ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_whole_matrices_and_their_base_are_recorded_narrower(dtype, tmp_path):
    model = make(dtype=torch.float64)
    with Recorder(model, tmp_path / "run", dtype=dtype) as recorder:
        recorder.record(0)
        start = model["query"].weight.detach().clone()
        moved(model)
        recorder.record(1)
    run = Trajectory.open(tmp_path / "run")
    assert run.base("query").dtype == dtype
    assert torch.equal(run.base("query"), start.to(dtype))
    assert torch.equal(run.weight("query", 1), model["query"].weight.to(dtype))
    # Rounded alike, a matrix that has not moved shows no change.
    assert run.changes("base").query("step_to == 0")[["delta_m", "delta_d"]].to_numpy().max() == 0
    assert model["query"].weight.dtype == torch.float64


def test_the_rounding_of_the_record_is_the_noise_floor_of_its_rank(tmp_path):
    ranks = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = nn.ModuleDict({"query": nn.Linear(64, 64, bias=False)})
        with Recorder(model, tmp_path / str(dtype), dtype=dtype) as recorder:
            with torch.no_grad():
                model["query"].weight += 0.01 * torch.randn(64, 2) @ torch.randn(2, 64)
            recorder.record(1)
        ranks[dtype] = int(Trajectory.open(tmp_path / str(dtype)).spectra()["rank"][0])
    assert ranks == {torch.float32: 2, torch.bfloat16: 2}


def test_what_is_as_narrow_already_and_the_tensors_of_a_method_stay_as_they_are(tmp_path):
    for method, dtype in (("ft", torch.bfloat16), ("lora", torch.float32)):
        model = make(method, dtype)
        with Recorder(model, tmp_path / method, dtype=torch.float16) as recorder:
            recorder.record(0)
        run = Trajectory.open(tmp_path / method)
        assert run.base("query").dtype == dtype
        assert {value.dtype for value in run.state("query", 0).values()} == {dtype}


def test_what_float16_cannot_hold_is_told(tmp_path):
    model = make()
    with Recorder(model, tmp_path / "run", dtype=torch.float16) as recorder:
        with torch.no_grad():
            model["query"].weight[0, 0] = 1e5
        with pytest.raises(RecordError, match=r"query\.weight has entries beyond float16; record in bfloat16"):
            recorder.record(0)


# --- scalars ---


def test_only_the_scalars_that_are_wanted_are_kept(tmp_path):
    for patterns, columns in ((None, ["step", "loss", "lr"]), (["l?"], ["step", "lr"]), ([], [])):
        with Recorder(make(), tmp_path / str(patterns), scalars=patterns) as recorder:
            recorder.step(0, loss=1.0, lr=0.1)
        assert list(Trajectory.open(tmp_path / str(patterns)).scalars()) == columns


# --- how many checkpoints ---


@pytest.mark.parametrize("keep", [2, 3, 5, 8])
@pytest.mark.parametrize("when", [every(3), geometric(2, 1.3)], ids=["every", "geometric"])
def test_a_limited_number_of_checkpoints_lies_evenly_over_the_run(keep, when, tmp_path):
    model, steps = make("lora"), 90
    with Recorder(model, tmp_path / "run", when=when, keep=keep) as recorder:
        for step in range(steps):
            recorder.step(step)
            assert Trajectory.open(tmp_path / "run").steps == recorder.steps
            assert keep // 2 <= max(len(recorder.steps), keep // 2) <= keep
    hits = [step for step in range(steps) if when(step)]
    apart = stride(hits.index(recorder.steps[-1]), keep)
    assert recorder.steps == hits[: hits.index(recorder.steps[-1]) + 1 : apart]
    assert len(hits) - hits.index(recorder.steps[-1]) <= 2 * apart
    run = Trajectory.open(tmp_path / "run")
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == len(run.steps)
    assert run.verify() == len(run.steps) + 1


def test_the_number_stays_limited_over_a_resume_and_what_is_asked_for_comes_on_top(tmp_path):
    def record(path, *parts):
        model = make("lora")
        for part in parts:
            with Recorder(model, path, when=every(2), keep=4, resume=True) as recorder:
                for step in part:
                    recorder.step(step)
        recorder = Recorder(model, path, when=every(2), keep=4, resume=True)
        with recorder:
            recorder.record(parts[-1][-1])
        return recorder.steps

    once = record(tmp_path / "once", range(51))
    assert once == [0, 16, 32, 48, 50]
    assert record(tmp_path / "twice", range(23), range(20, 51)) == once


def test_schedules_answer_alike_in_any_order():
    when = geometric(3, 1.7)
    forward = [step for step in range(100) if when(step)]
    again = geometric(3, 1.7)
    assert again(50) == (50 in forward)
    assert [step for step in reversed(range(100)) if again(step)][::-1] == forward


# --- how many bytes ---


@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_what_the_record_takes(method, tmp_path, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 12))
    options = {"rank": 2} if "rank" in options_of(method) else {}
    context = {"0": torch.eye(12), "1": torch.eye(10)}
    inject(model, create(method, **options), targets=["*"], context=context)
    with caplog.at_level(logging.INFO, "deltaw"), Recorder(model, tmp_path, when=every(5), total_steps=10) as recorder:
        for step in range(11):
            recorder.step(step)
    budget = recorder.budget
    sizes = {p.stat().st_size for p in (tmp_path / "checkpoints").iterdir()}
    assert budget.checkpoint == min(sizes) == max(sizes)
    assert budget.base == (tmp_path / "base.safetensors").stat().st_size
    assert budget.checkpoints == 3
    assert f"3 checkpoints planned, {amount(budget.total)} in all" in caplog.text


def test_a_plan_that_is_too_large_is_refused_before_anything_is_there(tmp_path):
    model = make()
    with Recorder(model, tmp_path / "measure", total_steps=100) as recorder:
        total = recorder.budget.total
    for options in ({"total_steps": 100}, {"keep": 101}):
        with Recorder(model, tmp_path / f"fits {options}", max_bytes=total, **options):
            pass
        path = tmp_path / "refused"
        with pytest.raises(RecordError, match=rf"{total} bytes .*101 checkpoints.*max_bytes is {total - 1}") as caught:
            Recorder(model, path, max_bytes=total - 1, **options).__enter__()
        assert "keep" in str(caught.value)
        assert not path.exists()
    with pytest.raises(OptionError, match="total_steps or keep"):
        Recorder(model, tmp_path / "refused", max_bytes=10)


def test_plans():
    assert planned(every(10), 100, None) == 11
    assert planned(every(10), 100, 4) == 4
    assert planned(every(10), None, 4) == 4
    assert planned(every(10), None, None) is None
    assert planned(geometric(10, 2), 100, None) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": torch.int8}, "dtype must be one of torch.float32, torch.bfloat16, torch.float16"),
        ({"dtype": torch.float64}, "dtype must be one of"),
        ({"keep": 1}, "keep must be a whole number of at least 2, not 1"),
        ({"background": -1}, "background must be"),
        ({"total_steps": 2.5}, "total_steps must be"),
        ({"max_bytes": 0}, "max_bytes must be"),
    ],
)
def test_bad_options(options, words, tmp_path):
    with pytest.raises(OptionError, match=words):
        Recorder(make(), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# --- live numbers ---


@pytest.mark.parametrize("method", ["ft", "lora", "bora", "pissa", "vera"])
def test_live_numbers_are_those_of_the_tables(method, tmp_path, caplog):
    model, logged, returned = make(method), {}, {}
    with (
        caplog.at_level(logging.INFO, "deltaw.trainers.recorder"),
        Recorder(model, tmp_path / "run", log=lambda numbers, step: logged.update({step: numbers})) as recorder,
    ):
        for step in range(4):
            returned[step] = recorder.step(step)
            assert recorder.last_changes == returned[step]
            moved(model)
    with Recorder(model, tmp_path / "run", live=True, resume=True) as recorder:
        returned[4] = recorder.step(4)
    assert logged == {step: returned[step] for step in range(4)}
    assert "step 3: delta_m/base/query/row" in caplog.text

    run = Trajectory.open(tmp_path / "run")
    tables = {pair: run.changes(pair) for pair in ("base", "consecutive")}
    for step, numbers in returned.items():
        wanted = {}
        for pair, table in tables.items():
            means = table[table.step_to == step].groupby(["kind", "axis"])[["delta_m", "delta_d"]].mean()
            for (kind, axis), row in means.iterrows():
                wanted |= {f"{name}/{pair}/{kind}/{axis}": value for name, value in row.items()}
        changed = {name: value for name, value in numbers.items() if name.startswith("delta_")}
        assert changed.keys() == wanted.keys()
        pd.testing.assert_series_equal(pd.Series(changed).sort_index(), pd.Series(wanted).sort_index(), rtol=1e-12)
        for name in run.modules:  # one of each kind
            weight, base = run.weight(name, step, torch.float64), run.base(name).double()
            assert numbers[f"norm/{name}"] == pytest.approx(float(weight.norm()), rel=1e-9)
            assert numbers[f"update/{name}"] == pytest.approx(float((weight - base).norm() / base.norm()), abs=1e-12)
            if step:
                want = spectrum(run.update(name, step)).stable_rank
                assert numbers[f"stable_rank/{name}"] == pytest.approx(want, rel=0.02)
        assert len(numbers) - len(changed) == (6 if step else 4 + sum("stable_rank" in name for name in numbers))


def test_live_numbers_only_where_wanted_and_recorded(tmp_path):
    with Recorder(make(), tmp_path / "without") as recorder:
        assert recorder.step(0) is None
        assert recorder.last_changes == {}
    with Recorder(make(), tmp_path / "with", when=every(2), live=True) as recorder:
        assert recorder.step(0)
        assert recorder.step(1) is None
        assert recorder.record(0) is None


def test_a_weight_that_is_no_number_does_not_stop_the_training(tmp_path):
    model = make()
    with Recorder(model, tmp_path / "run", live=True) as recorder:
        recorder.step(0)
        with torch.no_grad():
            model["query"].weight[0, 0] = torch.nan
        numbers = recorder.step(1)
    assert numbers["delta_m/consecutive/value/row"] == 0
    assert numbers["delta_m/consecutive/query/row"] == 0  # of the rows that are numbers


# --- the background ---


@pytest.fixture
def held(monkeypatch):
    """The writer's files wait until ``held.set()``; as many as wait have begun."""
    released = threading.Event()
    original = recorder_module._write_tensors

    def write(path, tensors):
        assert threading.current_thread() is threading.main_thread() or released.wait(30)
        return original(path, tensors)

    monkeypatch.setattr(recorder_module, "_write_tensors", write)
    yield released
    released.set()


@pytest.mark.parametrize("method", ["ft", "lora", "bora"])
def test_copies_are_taken_before_training_goes_on(method, held, tmp_path):
    model, weights = make(method), []
    with Recorder(model, tmp_path / "run", background=3) as recorder:
        for step in range(3):
            recorder.step(step)
            weights.append(effective_weight(model["query"]).clone())
            moved(model)
        assert recorder.steps == [0, 1, 2]
        assert Trajectory.open(tmp_path / "run").steps == []
        held.set()
        recorder.flush()
        assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2]
        recorder.step(3)
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 1, 2, 3]
    assert all(torch.equal(run.weight("query", step), weight) for step, weight in enumerate(weights))


def test_no_more_copies_than_may_wait(held, tmp_path):
    taken = []

    def record_all():
        for step in range(4):
            recorder.step(step)
            taken.append(step)

    with Recorder(make(), tmp_path / "run", background=2) as recorder:
        thread = threading.Thread(target=record_all)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert taken == [0, 1]
        held.set()
        thread.join(30)
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2, 3]


def failing(monkeypatch, after):
    original, count = recorder_module._write_tensors, iter(range(100))

    def write(path, tensors):
        if next(count) >= after:
            raise WriteError(f"{path}: cannot be written (the disk is full)")
        return original(path, tensors)

    monkeypatch.setattr(recorder_module, "_write_tensors", write)


def test_an_error_in_the_background_stops_the_run_at_the_next_step(monkeypatch, tmp_path):
    with Recorder(make(), tmp_path / "run", when=every(5), background=2) as recorder:
        failing(monkeypatch, after=2)
        for step in range(11):
            recorder.step(step)
        with pytest.raises(WriteError):
            recorder.flush()
        for _ in range(2):  # nor does it go on when that is caught
            with pytest.raises(WriteError, match=r"0000000010\.safetensors"):
                recorder.step(11)  # one that is not recorded
        with pytest.raises(WriteError):
            recorder.record(12)
    assert Trajectory.open(tmp_path / "run").steps == [0, 5]
    assert not list((tmp_path / "run").rglob("*" + PARTIAL))


def test_after_an_error_nothing_is_written_beside_the_gap(monkeypatch, tmp_path):
    recorder = Recorder(make(), tmp_path / "run", background=8).__enter__()
    original, hold = recorder_module._write_tensors, threading.Event()

    def write(path, tensors):
        hold.wait(30)
        if path.name.startswith("0000000002"):
            raise WriteError(f"{path}: cannot be written")
        return original(path, tensors)

    monkeypatch.setattr(recorder_module, "_write_tensors", write)
    for step in range(6):
        recorder.step(step)
    hold.set()
    with pytest.raises(WriteError, match=r"0000000002"):
        recorder.close()
    monkeypatch.undo()
    assert Trajectory.open(tmp_path / "run").steps == [0, 1]
    with Recorder(make(), tmp_path / "run", resume=True) as recorder:  # the folder was released
        assert recorder.steps == [0, 1]


def test_the_error_that_ended_a_training_stays_the_one_that_is_seen(monkeypatch, tmp_path):
    def run():
        with Recorder(make(), tmp_path / "run", background=2) as recorder:
            failing(monkeypatch, after=0)
            recorder.step(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        run()
    assert "the disk is full" in caught.value.__notes__[0]


def test_in_the_foreground_an_error_comes_at_once(monkeypatch, tmp_path):
    with Recorder(make(), tmp_path / "run") as recorder:
        failing(monkeypatch, after=0)
        with pytest.raises(WriteError):
            recorder.step(0)
        assert recorder.steps == []


LEFT_OPEN = """
import sys
from torch import nn
from deltaw.trainers import Recorder
recorder = Recorder(nn.Sequential(nn.Linear(64, 64)), sys.argv[1], background=4).__enter__()
for step in range(4):
    recorder.step(step)
"""


def test_what_waits_is_written_though_nobody_closes(tmp_path):
    subprocess.run([sys.executable, "-c", LEFT_OPEN, str(tmp_path / "run")], check=True, timeout=120)
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2, 3]


# --- two recorders ---


def hold_the_folder(path, opened, ended):
    with Recorder(make(), path):
        opened.set()
        ended.wait(60)


def test_another_process_is_refused_until_the_first_has_closed(tmp_path):
    context = multiprocessing.get_context("fork")
    opened, ended = context.Event(), context.Event()
    process = context.Process(target=hold_the_folder, args=(tmp_path / "run", opened, ended))
    process.start()
    try:
        assert opened.wait(60)
        for resume in (False, True):
            with pytest.raises(RecordError, match="another process is recording"):
                Recorder(make(), tmp_path / "run", resume=resume).__enter__()
    finally:
        ended.set()
        process.join(60)
    assert not (tmp_path / "run" / LOCK).exists()
    with Recorder(make(), tmp_path / "run", resume=True) as recorder:
        recorder.record(0)


def race(path, start, answers):
    start.wait(60)
    for _ in range(10):
        try:
            with Recorder(make("lora"), path, resume=True) as recorder:
                mine = path / "held"
                mine.touch(exist_ok=False)
                recorder.record(0)
                mine.unlink()
            answers.put("held")
        except RecordError:
            answers.put("refused")
        except FileExistsError:
            answers.put("two at once")


def test_never_two_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start, answers = context.Event(), context.Queue()
    processes = [context.Process(target=race, args=(tmp_path, start, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    found = [answers.get(timeout=60) for _ in range(40)]
    for process in processes:
        process.join(60)
    assert "two at once" not in found
    assert found.count("held") >= 1

"""Ctrl-C between the disk and the memory, two recorders, wrong types, far steps, and what recording imports."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from deltaw.adapters import DeltawError, LoRA, OptionError, RecordError, inject
from deltaw.analysis.records.run_folder import lock as lock_module
from deltaw.analysis.records.run_folder.format import INDEX, SCALARS
from deltaw.analysis.records.run_folder.lock import LOCK
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder, at, epochs, every, geometric
from deltaw.trainers.budget import planned
from deltaw.trainers.schedules import with_steps
from deltaw.trainers.thinning import Thinning


def make():
    torch.manual_seed(0)
    return inject(nn.Sequential(nn.Linear(12, 10)), LoRA(rank=2), targets=["0"])


# --- Ctrl-C ---


@pytest.mark.parametrize("options", [{}, {"keep": 2}, {"live": True}], ids=str)
def test_ctrl_c_after_the_index_line_and_then_a_save(options, tmp_path, monkeypatch):
    armed, original = [False], os.fsync

    def fsync(descriptor):
        original(descriptor)
        if armed[0] and os.readlink(f"/proc/self/fd/{descriptor}").endswith(INDEX):
            armed[0] = False
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "fsync", fsync)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Recorder(make(), tmp_path / "run", **options) as recorder:
            recorder.step(0)
            recorder.step(1)
            armed[0] = True
            with pytest.raises(KeyboardInterrupt):
                recorder.record(2)
            assert recorder.steps[-1] == 2
            recorder.record(2)
            recorder.record(3)
    finally:
        signal.signal(signal.SIGINT, before)
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == recorder.steps
    assert run.steps[-2:] == [2, 3]
    assert run.verify() == len(run.steps) + 1


def test_a_repeated_equal_line_is_one(tmp_path):
    with Recorder(make(), tmp_path / "run") as recorder:
        recorder.record(0)
        recorder.record(1)
    lines = (tmp_path / "run" / INDEX).read_text().splitlines(keepends=True)
    (tmp_path / "run" / INDEX).write_text("".join([*lines, lines[-1]]))
    assert Trajectory.open(tmp_path / "run").steps == [0, 1]
    with Recorder(make(), tmp_path / "run", resume=True) as recorder:
        recorder.record(2)
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2]
    other = json.loads(lines[-1]) | {"bytes": 7}
    (tmp_path / "run" / INDEX).write_text("".join([*lines, json.dumps(other) + "\n"]))
    with pytest.raises(RecordError, match="steps must rise"):
        Trajectory.open(tmp_path / "run")


def test_a_damaged_log_does_not_stop_a_training_that_resumes(tmp_path):
    with Recorder(make(), tmp_path / "run") as recorder:
        for step in range(3):
            recorder.step(step, loss=1.0)
    with (tmp_path / "run" / SCALARS).open("ab") as file:
        file.write(b"\xff\xfe no text\n[]\n")
    with Recorder(make(), tmp_path / "run", resume=True) as recorder:
        recorder.step(2, loss=2.0)
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2]


# --- the lock ---


def test_a_second_recorder_in_this_process_is_told_so(tmp_path):
    first = Recorder(make(), tmp_path / "run").__enter__()
    with pytest.raises(RecordError, match="in this process, not by another process; close the recorder"):
        Recorder(make(), tmp_path / "run", resume=True).__enter__()
    first.close()
    Recorder(make(), tmp_path / "run", resume=True).__enter__().close()


def fails_to_open(path):
    """Whether a new process is refused the folder."""
    code = (
        "import sys, pathlib; from deltaw.analysis.records.run_folder.lock import FolderLock\n"
        "from deltaw.adapters.errors import RecordError\n"
        "try: FolderLock(pathlib.Path(sys.argv[1])).acquire()\n"
        "except RecordError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_lock_holds_when_a_forked_child_leaves(tmp_path):
    with Recorder(make(), tmp_path / "run") as recorder:
        recorder.record(0)
        child = os.fork()
        if child == 0:
            try:
                recorder.record(1)
            except RecordError:
                recorder.close()
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7  # it may not write
        assert (tmp_path / "run" / LOCK).exists()
        assert "another process is recording" in fails_to_open(tmp_path / "run")
        recorder.record(1)
    assert fails_to_open(tmp_path / "run") == ""


def test_a_child_that_lives_on_does_not_hold_the_folder(tmp_path):
    read, write = os.pipe()
    with Recorder(make(), tmp_path / "run"):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    try:
        assert fails_to_open(tmp_path / "run") == ""
    finally:
        os.close(write)
        os.waitpid(child, 0)
        os.close(read)


def test_the_lock_holds_when_a_cleaner_removes_the_file(tmp_path):
    with Recorder(make(), tmp_path / "run") as recorder:
        (tmp_path / "run" / LOCK).unlink()
        assert "another process is recording" in fails_to_open(tmp_path / "run")
        recorder.record(0)
    with Recorder(make(), tmp_path / "run", resume=True):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_of_the_file_system_the_file_itself_is_the_lock(code, tmp_path, monkeypatch):
    class NoLocks:
        LOCK_EX = LOCK_NB = LOCK_UN = 0

        @staticmethod
        def flock(descriptor, operation):
            raise OSError(code, "no locks here")

    monkeypatch.setattr(lock_module, "fcntl", NoLocks)
    with Recorder(make(), tmp_path / "run") as recorder:
        recorder.record(0)
        with pytest.raises(RecordError, match="in this process"):
            Recorder(make(), tmp_path / "run", resume=True).__enter__()
    assert not (tmp_path / "run" / LOCK).exists()
    (tmp_path / "run" / LOCK).write_text("1 elsewhere")
    with pytest.raises(RecordError, match=f"the file system has no locks, and {LOCK} is there"):
        Recorder(make(), tmp_path / "run", resume=True).__enter__()
    assert (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize("comes", [False, True])
def test_where_folders_cannot_be_locked_a_cleaner_lets_nobody_in_unnoticed(comes, tmp_path, monkeypatch):
    """As on NFS: the second recorder that came when the file was gone, or else the first, is told."""
    real = lock_module.fcntl.flock

    def flock(descriptor, operation):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EBADF, "no locks of folders here")
        real(descriptor, operation)

    monkeypatch.setattr(lock_module.fcntl, "flock", flock)
    with Recorder(make(), tmp_path / "run") as recorder:
        recorder.record(0)
        (tmp_path / "run" / LOCK).unlink()
        if comes:
            with Recorder(make(), tmp_path / "run", resume=True) as second:
                second.record(1)
                for write in (lambda: recorder.record(2), lambda: recorder.log(2, loss=1.0)):
                    with pytest.raises(RecordError, match="is being recorded to"):
                        write()
        else:
            recorder.record(1)
            assert (tmp_path / "run" / LOCK).exists()
            with pytest.raises(RecordError, match="is being recorded to"):
                Recorder(make(), tmp_path / "run", resume=True).__enter__()
    assert not (tmp_path / "run" / LOCK).exists()
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 1]
    assert run.verify() == 3


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeltawError, match=LOCK):
        Recorder(make(), tmp_path / "run").__enter__()
    assert not (tmp_path / "elsewhere").exists()


# --- wrong types ---


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((3, "run"), {}, "model must be a torch.nn.Module"),
        ((None,), {}, "path must be the run folder"),
        ((3,), {}, "path must be the run folder"),
        (("",), {}, "path must be the run folder"),
        (("run", 3), {}, "modules must be glob patterns"),
        (("run", ["0", 3]), {}, "modules must be glob patterns"),
        (("run", None, 50), {}, r"when must be a function of the step, such as every\(50\)"),
        (("run",), {"method": 3}, "method must be the name"),
        (("run",), {"info": 3}, "info must be a mapping"),
        (("run",), {"info": {"a": object()}}, "info must be a mapping"),
        (("run",), {"scalars": 3}, "scalars must be glob patterns"),
        (("run",), {"log": "wandb"}, "log must be a function"),
        (("run",), {"keep": True}, "keep must be a whole number"),
        (("run",), {"background": "2"}, "background must be a whole number"),
    ],
)
def test_a_wrong_argument_says_what_to_pass(arguments, options, words):
    model = () if isinstance(arguments[0], int) and len(arguments) == 2 else (make(),)
    with pytest.raises(OptionError, match=words):
        Recorder(*model, *arguments, **options)


def test_steps_are_whole_numbers(tmp_path):
    with Recorder(make(), tmp_path / "run") as recorder:
        for bad in ("x", True, 1.5, None, -1, torch.tensor(2.0), np.float64(3)):
            for call in (recorder.step, recorder.record, recorder.log):
                with pytest.raises(OptionError, match="step must be a whole number of at least 0"):
                    call(bad)
        recorder.step(np.int64(3), loss=torch.tensor(0.5))
        recorder.step(torch.tensor(4), loss=np.float32(0.25))
        with pytest.raises(OptionError, match="the scalar loss must be one number, not 'high'"):
            recorder.step(5, loss="high")
        assert recorder.steps == [3, 4]
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [3, 4]
    assert run.scalars().to_dict("list") == {"step": [3, 4], "loss": [0.5, 0.25]}


@pytest.mark.parametrize(
    "schedule",
    [
        lambda: every("x"),
        lambda: every(True),
        lambda: every(2.5),
        lambda: at(5),
        lambda: at("12"),
        lambda: at([1, "x"]),
        lambda: geometric("x"),
        lambda: geometric(1, "x"),
        lambda: geometric(1, float("nan")),
        lambda: geometric(1, float("inf")),
        lambda: epochs(None),
        lambda: epochs(3, 0),
    ],
)
def test_a_schedule_of_something_else_says_what_to_pass(schedule):
    with pytest.raises(OptionError, match="must be"):
        schedule()


def test_it_says_where_and_how_many(tmp_path):
    with Recorder(make(), tmp_path / "run") as recorder:
        recorder.record(0)
        assert repr(recorder) == f"Recorder('{tmp_path / 'run'}', 1 module, 1 checkpoint)"
        recorder.record(1)
        assert repr(recorder).endswith("1 module, 2 checkpoints)")


# --- far steps ---


FAR = {
    "every step": None,
    "every 7": every(7),
    "geometric": geometric(3, 1.3),
    "at": at([10, 10**9]),
    "a function": lambda step: True,
}


@pytest.mark.parametrize("when", FAR.values(), ids=FAR)
def test_far_steps_are_not_counted_one_by_one(when, tmp_path):
    asked = []

    def counted(step):
        asked.append(step)
        return when(step)

    chosen = counted if getattr(when, "__name__", "") == "<lambda>" else when
    with Recorder(make(), tmp_path / "run", when=chosen, keep=3, total_steps=10**10) as recorder:
        for step in range(0, 10**10, 10**9):
            recorder.step(step)
        assert len(recorder.steps) <= 3
    with Recorder(make(), tmp_path / "run", when=chosen, keep=3, resume=True) as recorder:
        for step in range(10**10, 2 * 10**10, 10**9):
            recorder.step(step)
        assert len(recorder.steps) <= 3
    assert len(asked) < 1000


@pytest.mark.parametrize(
    "when", [every(7), geometric(3, 1.3), geometric(1, 1.01), at([4, 2, 30]), epochs(5, 2)], ids=str
)
def test_a_schedule_counts_its_steps_as_one_by_one(when):
    for far in (with_steps(when, []), with_steps(when, [0, 31, None, 28])):
        assert [far.before(step) for step in range(120)] == [sum(map(far, range(step))) for step in range(120)]
        assert planned(far, 100, None) == sum(map(far, range(101)))


@pytest.mark.parametrize("keep", [2, 3, 8])
def test_a_function_is_thinned_as_a_schedule_that_can_count(keep):
    found = []
    for when in (every(3), lambda step: step % 3 == 0):
        thinning, steps = Thinning(when, keep), []
        for step in range(200):
            if thinning.stays(step):
                gone = thinning.dropped(steps, step)
                steps = [s for s in steps if s not in gone] + [step]
        found.append(steps)
    assert found[0] == found[1]


# --- imports ---

TINY = """
import sys, torch
from deltaw.trainers import Recorder, every
with Recorder(torch.nn.Sequential(torch.nn.Linear(3, 2)), sys.argv[1], when=every(1), keep=3) as recorder:
    for step in range(4):
        recorder.step(step, loss=0.5)
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def imported_by_recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "run"
    done = subprocess.run([sys.executable, "-c", TINY, str(path)], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ["pandas", "matplotlib", "transformers", "torch._dynamo"])
def test_recording_imports_neither_tables_nor_figures_nor_the_compiler(name, imported_by_recording):
    assert name not in imported_by_recording


# --- Ctrl-C at any call ---


@pytest.mark.parametrize("options", [{}, {"keep": 2}], ids=str)
@pytest.mark.parametrize("after", [False, True])
def test_ctrl_c_at_any_call_and_then_a_save(options, after, tmp_path, monkeypatch):
    """The n-th call of the system is interrupted, before or behind it; the loop saves, and goes on."""
    calls, real = [0, 0], {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "unlink")}

    def interrupted(name):
        def call(*arguments, **more):
            calls[0] += 1
            if calls[0] == calls[1] and not after:
                raise KeyboardInterrupt
            result = real[name](*arguments, **more)
            if calls[0] == calls[1] and after:
                if name == "open":
                    os.close(result)
                raise KeyboardInterrupt
            return result

        return call

    for name in real:
        monkeypatch.setattr(os, name, interrupted(name))
    for number in range(1, 200, 1 if os.environ.get("CI") else 5):
        path = tmp_path / str(number)
        with Recorder(make(), path) as recorder:
            recorder.step(0, loss=1.0)
        calls[:] = [0, -1]
        with Recorder(make(), path, resume=True, **options) as recorder:
            calls[:] = [0, number]
            for step in range(1, 5):
                try:
                    recorder.step(step, loss=1.0)
                except KeyboardInterrupt:
                    recorder.record(step)
            reached, calls[1] = calls[0] >= number, -1
        run = Trajectory.open(path)
        assert run.steps == recorder.steps
        assert run.steps[-1] == 4
        assert run.verify() == len(run.steps) + 1
        assert len(set(run.scalars()["step"])) >= 4  # the interrupted step may have no row
        if not reached:
            return
    pytest.fail("there was no end of calls")


# --- the log ---


def test_a_log_whose_first_line_could_not_be_written_is_none(tmp_path, monkeypatch):
    full, original = [True], os.write

    def write(descriptor, data):
        if full[0] and os.readlink(f"/proc/self/fd/{descriptor}").endswith(SCALARS):
            raise OSError(errno.ENOSPC, "no space left")
        return original(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with Recorder(make(), tmp_path / "run") as recorder:
        with pytest.raises(DeltawError, match="Free some space"):
            recorder.step(0, loss=1.0)
        recorder.record(0)
    assert not (tmp_path / "run" / SCALARS).exists()
    assert Trajectory.open(tmp_path / "run").verify() == 2
    full[0] = False
    with Recorder(make(), tmp_path / "run", resume=True) as recorder:
        recorder.step(1, loss=1.0)
    assert Trajectory.open(tmp_path / "run").verify() == 3

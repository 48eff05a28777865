"""Work in several processes: the same results, errors that come back, processes that die, and Ctrl-C."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deltaw.adapters.errors import DeltawError, DeltawWarning, OptionError
from deltaw.analysis.progress import progress, tell
from deltaw.cli.waiting import wait_asleep
from deltaw.trainers.cola import settings as of_cola
from deltaw.trainers.side_by_side import default_jobs, run_all, usable_cores
from deltaw.trainers.threads import on_threads, suitable_threads

MODEL = str(Path(of_cola.__file__).parent / "builtin" / "model")


def settings(small, **options):
    chosen = {"method": "lora", "epochs": 1, "batch_size": 16, "record_every": 1, "learning_rate": 1e-3} | options
    return of_cola.ColaSettings(model=MODEL, data=str(small), **chosen)


def work(kind, folder=None, base=0):
    """One piece of it, by its name."""
    if kind == "option":
        raise OptionError("rank must be at least 1, not 0")
    if kind == "other":
        raise ValueError("out of\nrange")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "talks":
        warnings.warn("a row is zero", DeltawWarning, stacklevel=1)
        logging.getLogger("deltaw.trainers").warning("step %d is damaged", 3)
        tell("talks: goes on from step 5")
        for _ in progress(range(3), "talks", "step"):
            pass
    return kind, base, torch.get_num_threads(), os.getpid()


def test_results_and_errors_come_back_by_name(capsys, caplog):
    kinds = ["a", "option", "killed", "other", "talks", "b"]
    with pytest.warns(DeltawWarning, match="a row is zero"), on_threads(2):
        found = run_all({kind: partial(work, kind) for kind in kinds}, 2, shared={"base": 7})
    assert list(found) == kinds
    assert [found[kind][:3] for kind in ("a", "b")] == [("a", 7, 2), ("b", 7, 2)]
    processes = {found[kind][3] for kind in ("a", "talks", "b")}
    assert os.getpid() not in processes
    assert len(processes) <= 3  # two, and one in the place of the one that was killed
    assert type(found["option"]) is OptionError
    assert str(found["option"]) == "rank must be at least 1, not 0"
    assert type(found["other"]) is DeltawError
    assert str(found["other"]) == "ValueError: out of range"
    assert "out of\nrange" in found["other"].__notes__[0]
    assert "its process was killed by SIGKILL; where memory ran out, fewer --jobs" in str(found["killed"])
    assert "step 3 is damaged" in caplog.text
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "talks: goes on from step 5"
    assert lines[1] == "talks: 0 of 3 steps"
    assert re.fullmatch(r"talks: 3 steps in 0:0\d", lines[2])


def test_one_job_stays_in_this_process():
    found = run_all({kind: partial(work, kind) for kind in ("a", "other")})
    assert found["a"][3] == os.getpid()
    assert type(found["other"]) is ValueError
    for jobs in (0, True, 1.5):
        with pytest.raises(OptionError, match="jobs"):
            run_all({}, jobs)


def test_a_grid_side_by_side_is_equal_to_the_bit_and_leaves_a_failing_run(small, tmp_path):
    from deltaw.trainers.cola import train_grid  # not above: the processes of the other tests import this file, too

    wanted = {"methods": ["bora", "lora"], "ranks": [2], "progress": False}
    with on_threads(2):  # each run has its own, whatever there is here
        one = train_grid(settings(small), tmp_path / "one", **wanted)
    two = train_grid(settings(small), tmp_path / "two", **wanted, jobs=2)
    assert [(r.out, r.best_mcc) for r in one] == [(r.out, r.best_mcc) for r in two]
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors"))
    assert len(files) > 6
    assert files == sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.safetensors"))
    for file in files:
        before, after = (load_file(tmp_path / folder / file) for folder in ("one", "two"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before), file


PROGRAM = """
import sys
from deltaw.cli import main
from deltaw.analysis.workers import early
if __name__ == "__main__":
    early.DEVICES = DEVICES
    sys.exit(main())
"""


def is_there(group):
    """Whether a process is left of a group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", ["forked", "anew"])
@pytest.mark.always(how=["forked"])
@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals of POSIX")
def test_ctrl_c_ends_all_and_each_goes_on(small, tmp_path, how):
    """Of processes that are forked from one that imported ahead, and of those that start anew, as where a GPU is."""
    script = tmp_path / "call.py"
    script.write_text(PROGRAM.replace("DEVICES\n", {"forked": "()\n", "anew": "('/',)\n"}[how]))
    call = [sys.executable, str(script), "train", "cola", "--model", MODEL, "--data", str(small), "--batch-size", "4"]
    call += ["--method", "lora,bora", "--rank", "2", "--record-every", "1", "--save-every", "1", "--jobs", "2"]
    call += ["--out", str(tmp_path / "out"), "--epochs", "40"]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        runs = [tmp_path / "out" / f"{method}-r2-s0" for method in ("lora", "bora")]
        end = time.monotonic() + 120
        while not all(list(run.glob("training/checkpoint-*/trainer_state.json")) for run in runs):
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert said.splitlines()[-1] == "deltaw: interrupted; the same command goes on where it stopped"
    assert "Traceback" not in said
    end = time.monotonic() + 120
    while is_there(running.pid):  # multiprocessing's own helper goes last
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not any((run / "result.json").exists() for run in runs)
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert all((run / "result.json").exists() for run in runs)
    for run in runs:
        assert re.search(rf"{run.name}: goes on from step \d+ of 480", done.stderr), done.stderr


def test_threads_and_jobs_follow_the_model(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    small, large = torch.nn.Linear(8, 8), torch.nn.Linear(3000, 3000, device="meta")
    with on_threads(3):
        assert (suitable_threads(small), suitable_threads(large)) == (1, 3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert suitable_threads(small) == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (default_jobs(None), default_jobs("roberta-base")) == (usable_cores(), 1)


def test_threads_that_wait_sleep_unless_the_user_or_torch_was_first(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    fresh, chosen = {}, {"KMP_BLOCKTIME": "200"}
    wait_asleep(fresh)
    wait_asleep(chosen)
    assert (fresh, chosen) == ({"OMP_WAIT_POLICY": "PASSIVE"}, {"KMP_BLOCKTIME": "200"})
    monkeypatch.setitem(sys.modules, "torch", torch)
    late = {}
    wait_asleep(late)
    assert late == {}

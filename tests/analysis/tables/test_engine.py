"""Tables measured by an engine: a local cluster of several worker processes, one of which is killed midway."""

import logging
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack

import dask
import distributed
import pandas as pd
import pytest
from distributed import LocalCluster

from deltaw.adapters.errors import DeltawError, DeltawWarning, OptionError, RecordError
from deltaw.analysis import Trajectory, table
from deltaw.analysis.tables import units
from deltaw.analysis.tables.work import Work
from deltaw.analysis.workers import engine
from deltaw.cli import main

from .measured_runs import models, norms, recorded


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Trajectory:
    return Trajectory.open(recorded(tmp_path_factory.mktemp("runs") / "dora", "dora"))


@pytest.fixture(scope="module")
def address():
    """Where a cluster of two processes is; a piece of work is tried twice."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0) as cluster,
    ):
        yield cluster.scheduler_address


def test_one_killed_midway_and_the_table_is_the_same_to_the_bit(run, address, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(units, "AT_LEAST", 2)
    alone = norms(run, None, tmp_path, Work())
    found = norms(run, ("1", "once"), tmp_path, Work(engine="dask", address=address), progress=True)
    assert (tmp_path / "1").exists()  # one was killed
    pd.testing.assert_frame_equal(found, alone, check_exact=True)
    assert "norms of dora: 56 matrices in" in capsys.readouterr().err


def test_what_several_are_lost_at_is_left_out(run, address, tmp_path):
    alone = norms(run, None, tmp_path, Work())
    said = r"1 module is left out, all or in part, 1 \(24, 16\): its process was lost with its worker, several times"
    with pytest.warns(DeltawWarning, match=said):
        found = norms(run, ("1", "always"), tmp_path, Work(engine="dask", address=address))
    want = alone[alone.module != "1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, want, check_exact=True, check_dtype=False)


def test_errors_and_notes_are_those_of_one_process(run, address, tmp_path):
    path, base = models(tmp_path)
    with pytest.raises(RecordError, match=r"no base weights.*base=FOLDER"):
        table([Trajectory.open(path)], "base", engine="dask", address=address)
    with pytest.warns(DeltawWarning, match=r"1 module is left out, layers\.2\.query"):
        found = table([Trajectory.open(path, base=base)], "base", engine="dask", address=address, cache=False)
    assert len(found) == 4


def test_one_started_here(run, capsys):
    alone = run.changes(("consecutive", "base"), cache=False)
    found = run.changes(("consecutive", "base"), cache=False, engine="dask", jobs=2)
    pd.testing.assert_frame_equal(found, alone, check_exact=True)


def test_an_engine_whose_workers_are_gone_is_not_waited_for(monkeypatch):
    class Gone:
        thread_condition = threading.Condition()

        def has_ready(self):
            return False

        def nthreads(self):
            return {}

    monkeypatch.setattr(engine, "NO_WORKER", 0.2)
    monkeypatch.setattr(engine, "ASKED", 0.1)
    with pytest.raises(DeltawError, match="no worker for 0 s, they died and none came"):
        engine._next(Gone(), Gone())


def test_what_is_wrong_is_one_line(run, monkeypatch, capsys):
    monkeypatch.setattr(engine, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, and says nothing
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            DeltawError, match=rf"no engine answers at {re.escape(address)} within 0\.5 s .*dask worker"
        ):
            run.changes(engine="dask", address=address, cache=False)
    for wrong in (address, "nonsense::", "10.0.0.1"):
        code = main(["changes", str(run.path), "--engine", "dask", "--address", wrong, "--no-cache", "--json"])
        said = capsys.readouterr().err
        assert (code, said.count("\n")) == (1, 1)
        assert f"no engine answers at {wrong}" in said
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OptionError, match=r"engine 'dask' is not installed: pip install 'deltaw\[cluster\]'"):
        run.changes(engine="dask", cache=False)


def test_a_scheduler_that_dies_midway_is_one_line(run, tmp_path, capfd):
    """As on a cluster, in processes of their own."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    dask_itself = [sys.executable, "-m", "dask"]
    with ExitStack() as stack, dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        scheduler = started(
            stack, [*dask_itself, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], quiet
        )
        options = ["--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--no-nanny", "--death-timeout", "30"]
        started(stack, [*dask_itself, "worker", address, *options], quiet)
        with pytest.raises(DeltawError, match=rf"engine at {re.escape(address)} was lost; the same call goes on"):
            norms(run, ("2", scheduler.pid), tmp_path, Work(engine="dask", address=address))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def started(stack: ExitStack, command: list[str], options: dict) -> subprocess.Popen:
    here = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=os.environ | here, **options)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def test_a_scheduler_that_does_not_answer_any_more_was_lost(run, address, tmp_path, monkeypatch):
    answers, asked = iter([{"a": 1}]), distributed.Client.nthreads

    def nthreads(client):
        try:
            return next(answers)
        except StopIteration:
            raise OSError(f"Timed out trying to connect to {address} after 15 s") from None

    monkeypatch.setattr(distributed.Client, "nthreads", nthreads)
    with pytest.raises(DeltawError, match=rf"engine at {re.escape(address)} was lost; the same call goes on"):
        norms(run, None, tmp_path, Work(engine="dask", address=address))
    monkeypatch.setattr(distributed.Client, "nthreads", asked)
    assert len(norms(run, None, tmp_path, Work(engine="dask", address=address))) == 56


def test_the_log_of_dask_is_silent_and_then_as_it_was():
    own = logging.getLogger("distributed.client")
    level = own.level
    assert level  # Dask sets it, so that the level of the loggers above does not count
    with engine._quiet():
        assert not own.isEnabledFor(logging.CRITICAL)
    assert own.level == level

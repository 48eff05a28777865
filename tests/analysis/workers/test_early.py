"""Processes that are forked from one that imports ahead: what they have, and what happens where that one is gone."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys
from functools import partial
from deltaw.analysis.workers import early

DEVICES = ()

def at_start():
    return os.getppid(), "colorsys" in sys.modules, "strange" in vars(sys.modules["random"])

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    early.DEVICES = DEVICES
    early.import_early("colorsys", "no_such_module_at_all", "deltaw.analysis.workers.processes")
    from deltaw.trainers.side_by_side import run_all

    found = run_all({"a": at_start, "killed": killed, "b": at_start}, 2)
    print(found["killed"])
    (server, *there), (same, *_) = found["a"], found["b"]
    print(server == same != os.getpid(), *there)
    if server != os.getpid():
        os.kill(server, signal.SIGKILL)
    found = run_all({"a": at_start, "b": at_start}, 2)
    print([each[0] == os.getpid() for each in found.values()])
"""


@pytest.fixture
def called(tmp_path):
    """Call a program in a folder where a file stands in the way of a module."""

    def call(program: str) -> list[str]:
        (tmp_path / "program").mkdir()
        (tmp_path / "program" / "program.py").write_text(program)
        (tmp_path / "random.py").write_text("strange = True\n")
        done = subprocess.run(
            [sys.executable, Path("program", "program.py")], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert not done.stderr
        return done.stdout.splitlines()

    return call


@pytest.mark.skipif(sys.platform != "linux", reason="nowhere else is a process forked")
def test_processes_have_what_was_imported_and_start_anew_where_nobody_is_left_to_fork(called):
    killed, there, alone = called(PROGRAM)
    assert "was killed by SIGKILL" in killed
    assert there == "True True False"  # of one parent, which is not this one; with the module, without the file
    assert alone == "[True, True]"


def test_where_a_gpu_is_no_process_is_forked(called):
    _, there, alone = called(PROGRAM.replace("DEVICES = ()", "DEVICES = ('/',)"))
    assert there.startswith("False False")
    assert alone == "[True, True]"


ENDS = """
from deltaw.analysis.workers import early

if __name__ == "__main__":
    early.DEVICES = ()
    early.import_early("slow_to_import")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="nowhere else is a process forked")
def test_a_program_that_ends_early_leaves_no_process_that_imports(called, tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "slow_to_import.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    assert called(ENDS) == []  # it returns when nobody has its stderr any more

"""When the command line has a process import ahead for those that are to come."""

import click
import pytest

from deltaw.cli import options, train_options
from deltaw.cli.commands import Session
from deltaw.cli.options import MEASURING, work_of
from deltaw.cli.train_options import OF_COLA, OF_VL, import_for_runs

WORK = {"device": None, "jobs": 2, "engine": None, "address": None, "cache": True}


@pytest.fixture
def asked(monkeypatch):
    """The modules that were to be imported."""
    found = []
    for module in (options, train_options):
        monkeypatch.setattr(module, "import_early", lambda *modules: found.append(modules))
    monkeypatch.setattr(train_options, "usable_cores", lambda: 4)
    return found


def in_a_call(function, *given, alone=True):
    with click.Context(click.Command("deltaw"), obj=Session(alone=alone)):
        return function(*given)


def test_for_runs_side_by_side(asked, tmp_path):
    for runs, jobs, model in ((4, 2, "roberta-base"), (2, None, None)):
        in_a_call(import_for_runs, OF_COLA, runs, jobs, model, tmp_path)
    assert asked == [OF_COLA, OF_COLA]
    for runs, jobs, model in ((4, 1, None), (1, 2, None), (4, None, "roberta-base")):
        in_a_call(import_for_runs, OF_COLA, runs, jobs, model, tmp_path)
    in_a_call(import_for_runs, OF_VL, 4, 2, None, tmp_path / "none", alone=False)  # called by somebody's program
    for name in ("lora", "runs/bora"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").touch()
    in_a_call(import_for_runs, OF_COLA, 3, 2, None, tmp_path)  # one is left to be trained
    assert len(asked) == 2


def test_for_measuring(asked):
    assert in_a_call(work_of, dict(WORK)).jobs == 2
    assert asked == [MEASURING]
    in_a_call(work_of, WORK | {"jobs": 1})
    in_a_call(work_of, WORK | {"engine": "dask"})
    in_a_call(work_of, dict(WORK), alone=False)
    assert len(asked) == 1


def test_what_is_imported_exists():
    from importlib.util import find_spec

    assert all(find_spec(name) for name in {*OF_COLA, *OF_VL, *MEASURING})

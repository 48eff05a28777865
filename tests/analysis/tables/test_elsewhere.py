"""Tables measured by other processes: equal to the bit, the same errors and notes, and what happens to a lost one."""

import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltaw.adapters.errors import DeltawWarning, NonFiniteError, OptionError, RecordError
from deltaw.analysis import Trajectory, table
from deltaw.analysis.records.foreign.pair import PairSource
from deltaw.analysis.tables import elsewhere, units
from deltaw.analysis.tables.blocks import counts_of
from deltaw.analysis.tables.changes import _of_pair, changes_table
from deltaw.analysis.tables.kept import keeper
from deltaw.analysis.tables.stop import Plan
from deltaw.analysis.tables.subspaces import subspace_angles, subspace_overlap
from deltaw.analysis.tables.units import Shared, Unit, measured_unit, units_of
from deltaw.analysis.tables.walk import Walk, at_pairs, at_steps
from deltaw.analysis.tables.work import Work
from deltaw.analysis.workers.lost import LostError

from .measured_runs import TWO, models, norms, recorded


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Trajectory:
    return Trajectory.open(recorded(tmp_path_factory.mktemp("runs") / "bora"))


@pytest.fixture
def small_units(monkeypatch):
    """Many units of a few stops each."""
    monkeypatch.setattr(units, "AT_LEAST", 2)


@pytest.mark.parametrize("method", ["ft", "lora", "dora", "dora-row", "bora", "sbora-fa", "vera", "dual-lora", "pissa"])
@pytest.mark.always(method=["ft", "bora", "dual-lora"])
def test_spans_do_not_change_a_bit(tmp_path, method):
    run = Trajectory.open(recorded(tmp_path / "run", method))
    stops = at_pairs("consecutive")(run) + at_pairs("base")(run)
    for measure in (partial(_of_pair, axes=("row", "column"), heads=counts_of(None), allow_nonfinite=False),):
        shared = Shared([run], measure, "cpu")
        whole = measured_unit(Unit(0, 0, "0", stops), shared).rows
        for size in (1, 2, 5, 9):
            parts = [stops[k : k + size] for k in range(0, len(stops), size)]
            found = [rows for part in parts for rows in measured_unit(Unit(0, 0, "0", part), shared).rows]
            assert found == whole


@pytest.mark.parametrize("name", ["changes", "spectra", "vectors", "singular_values", "similarity"])
def test_two_jobs_give_the_same_table_to_the_bit(run, small_units, name):
    alone = table(run, name, cache=False)
    pd.testing.assert_frame_equal(table(run, name, jobs=2, cache=False), alone, check_exact=True)


def test_two_updates_are_compared_by_two_jobs(run):
    pair = {"step_first": 5, "step_second": 13}
    for compare in (subspace_overlap, subspace_angles):
        one, two = (compare(run, run, **pair, work=work) for work in (Work(), TWO))
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_the_order_of_the_walk_stays_over_several_runs(run, tmp_path, small_units):
    other = Trajectory.open(recorded(tmp_path / "lora", "lora", steps=5))
    one, two = (changes_table([run, other], ("consecutive", "base"), work=work) for work in (Work(), TWO))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_units_cover_every_stop_once_in_order(run):
    plans = [Plan(run, ["0", "2"], at_steps(None)(run))]
    todo = [{"0": plans[0].stops, "2": plans[0].stops[3:4]}]
    found = units_of(plans, todo, 3)
    assert [unit.number for unit in found] == list(range(len(found)))
    for module, stops in todo[0].items():
        assert [stop for unit in found if unit.module == module for stop in unit.stops] == stops
    assert units_of(plans, [{"0": []}], 2) == []


def test_units_become_smaller_so_that_all_processes_end_at_about_the_same_time(run):
    """Were they of one size, the last one could be a quarter of a process's work."""
    plans = [Plan(run, ["0"], at_steps(None)(run))]
    stops = [(None, step) for step in range(160)]
    sizes = [len(unit.stops) for unit in units_of(plans, [{"0": stops}], 2)]
    assert sum(sizes) == 160
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 20  # a quarter of each process's
    assert 4 <= sizes[-1] <= 6
    ends = [0, 0]
    for size in sizes:
        ends[ends.index(min(ends))] += size
    assert max(ends) <= 1.05 * 80


def test_the_first_error_of_the_walk_is_raised(tmp_path):
    folder = recorded(tmp_path / "ft", "ft", steps=6)
    for step, module in ((4, "2"), (5, "1")):
        (file,) = folder.glob(f"checkpoints/*{step:02}*")
        tensors = load_file(file)
        tensors[f"{module}.weight"][0, 0] = torch.inf
        save_file(tensors, file)
    said = []
    for work in (Work(), TWO):
        with pytest.raises(NonFiniteError) as caught:
            changes_table([Trajectory.open(folder)], "base", work=work)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "1, from the base to step 5" in said[0]


def test_what_came_before_an_error_is_kept_and_a_call_goes_on(tmp_path, monkeypatch, small_units):
    monkeypatch.setattr(keeper, "PAYS", -1.0)
    monkeypatch.setattr(keeper, "EVERY", -1.0)
    monkeypatch.setattr(keeper, "SETTLED", 0.0)
    folder = recorded(tmp_path / "ft", "ft", steps=8)
    fresh = changes_table([Trajectory.open(folder)], "base", modules=["0", "1"])
    (file,) = folder.glob("checkpoints/*07*")
    tensors = load_file(file)
    tensors["3.weight"][0, 0] = torch.nan
    save_file(tensors, file)
    work = Work(jobs=2, cache=True)
    with pytest.raises(NonFiniteError, match="3, from the base to step 7"):
        changes_table([Trajectory.open(folder)], "base", work=work)
    monkeypatch.setattr(
        elsewhere, "outcomes", lambda *given, **more: (each for each in ())
    )  # nothing is measured any more
    again = changes_table([Trajectory.open(folder)], "base", modules=["0", "1"], work=work)
    pd.testing.assert_frame_equal(again, fresh, check_exact=True)


def test_a_module_without_base_is_left_out_and_a_base_in_memory_goes_along(tmp_path):
    path, base = models(tmp_path)
    run, found = Trajectory.open(path, base=base), []
    for work in (Work(), TWO):
        with pytest.warns(DeltawWarning, match=r"1 module is left out, layers\.2\.query") as caught:
            found.append(table([run], "base", work=work))
        assert len(caught) == 1
    pd.testing.assert_frame_equal(*found, check_exact=True)
    assert found[0].attrs == found[1].attrs
    without = Trajectory.open(path)
    with pytest.raises(RecordError, match=r"no base weights.*base=FOLDER"):
        table([without], "base", work=TWO)


def test_a_trajectory_is_pickled_as_it_was_opened(run, tmp_path, monkeypatch):
    path, base = models(tmp_path)
    monkeypatch.chdir(tmp_path)
    opened = Trajectory.open("model.safetensors", base=base, modules=["*.0.*", "*.1.*"])
    opened.name = "mine"
    pair = Trajectory.from_pair(path, path)
    by_hand = Trajectory(PairSource(path, path, everything=False))
    run = Trajectory.open(run.path)
    run.steps = run.steps[:5]  # as where more were recorded since
    kept = []
    for each in (opened, pair, by_hand, run):
        module, step = each.modules[0], each.steps[-1]
        wanted = each.name, each.steps, each.modules, each.weight(module, step), each.base(module)
        kept.append((pickle.dumps(each), wanted))
    monkeypatch.chdir("/")
    for pickled, (name, steps, modules, weight, base) in kept:
        again = pickle.loads(pickled)
        assert (again.name, again.steps, again.modules) == (name, steps, modules)
        assert torch.equal(again.weight(modules[0], steps[-1]), weight)
        assert torch.equal(again.base(modules[0]), base)


def test_what_a_killed_process_was_at_is_measured_by_another(run, tmp_path, small_units):
    alone = norms(run, None, tmp_path, Work())
    pd.testing.assert_frame_equal(norms(run, ("1", "once"), tmp_path), alone, check_exact=True)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "said"), [("always", "was killed by SIGKILL, twice"), ("memory", "had not the memory for it")]
)
def test_what_ends_two_processes_is_left_out_and_the_rest_goes_on(run, tmp_path, how, said):
    alone = norms(run, None, tmp_path, Work())
    with pytest.warns(DeltawWarning, match=rf"1 module is left out.*1 \(24, 16\): its process {said}; .*GB") as caught:
        found = norms(run, ("1", how), tmp_path)
    assert len(caught) == len(found.attrs["left_out"]) == 1
    want = alone[alone.module != "1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, want, check_exact=True, check_dtype=False)


def test_what_cannot_be_handed_over_is_named(tmp_path, run):
    path, _ = models(tmp_path)

    class Mine(nn.Module):
        """One of a function, which no other process finds."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({k: nn.ModuleDict({"query": nn.Linear(3, 4, bias=False)}) for k in "012"})

    held = Trajectory.open(path, base=Mine())
    with pytest.raises(OptionError, match=r"model\.safetensors: cannot be handed to other processes .*give a folder"):
        table([held], "base", jobs=2)
    walk = Walk([run], "norms", at_steps(None), work=TWO)
    with pytest.raises(OptionError, match="what is measured: cannot be handed"):
        walk.rows(lambda stop: [])


def test_a_lost_error_is_pickled_with_how_it_was():
    again = pickle.loads(pickle.dumps(LostError("was killed by SIGKILL")))
    assert (again.how, str(again)) == ("was killed by SIGKILL", "its process was killed by SIGKILL")


PROGRAM = """
import sys, time
from pathlib import Path
from deltaw.analysis import Trajectory
from deltaw.analysis.tables.walk import Walk, at_steps
from deltaw.analysis.tables.work import Work

def slow(stop):
    (Path(sys.argv[2]) / stop.module).touch()
    time.sleep(300)

if __name__ == "__main__":
    Walk([Trajectory.open(sys.argv[1])], "norms", at_steps("last"), work=Work(jobs=2)).rows(slow)
"""


def is_there(group):
    """Whether a process is left of a group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups of POSIX")
def test_ctrl_c_ends_all(run, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "marks").mkdir()
    call = [sys.executable, str(tmp_path / "program.py"), str(run.path), str(tmp_path / "marks")]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        end = time.monotonic() + 120
        while len(list((tmp_path / "marks").iterdir())) < 2:
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, said = running.communicate(timeout=60)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1
    while is_there(running.pid):  # multiprocessing's own helper goes last
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_another_kind_of_machine_measured_is_said_once_and_not_kept(tmp_path, monkeypatch):
    folder = recorded(tmp_path / "run")
    monkeypatch.setattr(keeper, "PAYS", 0.0)
    monkeypatch.setattr(keeper, "SETTLED", -60.0)
    monkeypatch.setattr(elsewhere, "machine", lambda: "another")
    with pytest.warns(DeltawWarning, match="another than here: the last digits may be others") as said:
        Trajectory.open(folder).changes(jobs=2)
    assert len(said) == 1
    assert not (folder / "tables").exists()
    monkeypatch.undo()
    monkeypatch.setattr(keeper, "PAYS", 0.0)
    monkeypatch.setattr(keeper, "SETTLED", -60.0)
    Trajectory.open(folder).changes(jobs=2)
    assert (folder / "tables").exists()

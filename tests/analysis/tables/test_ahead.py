"""Matrices measured side by side: the same rows in the same order, errors where they belong, bounded memory."""

import threading
from functools import partial
from time import sleep

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters.errors import DeltawWarning, NonFiniteError
from deltaw.analysis import Trajectory
from deltaw.analysis.measures import norms
from deltaw.analysis.tables import ahead, spectra, updates
from deltaw.analysis.tables.run import LABELS
from deltaw.analysis.tables.singular_values import singular_values
from deltaw.analysis.tables.stop import Later
from deltaw.analysis.tables.walk import Walk, at_steps


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def models(count=5, shape=(140, 150)):
    draw = torch.Generator().manual_seed(0)
    base = {f"layers.{n}.query.weight": torch.randn(shape, generator=draw).bfloat16() for n in range(count)}
    after = {name: (w + 0.01 * torch.randn(shape, generator=draw)).bfloat16() for name, w in base.items()}
    return base, after


@pytest.fixture
def run(tmp_path):
    """Two checkpoints of five matrices."""
    base, after = models()
    for step, factor in ((1, 1), (2, 2)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file({k: factor * w for k, w in after.items()}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    save_file(base, tmp_path / "base.safetensors")
    return Trajectory.open(tmp_path, base=tmp_path / "base.safetensors")


@pytest.fixture(autouse=True)
def _small_is_worth_it(monkeypatch):
    monkeypatch.setattr(ahead, "WORTH", 1)


def test_the_tables_are_the_same_to_the_bit(run, monkeypatch):
    before, asked = torch.get_num_threads(), []
    true = norms.spectral_norm
    monkeypatch.setattr(norms, "spectral_norm", lambda weight: asked.append(weight.shape) or true(weight))
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append([run.spectra(cache=False), singular_values([run])])
    finally:
        torch.set_num_threads(before)
    for again in found[1:]:
        for frame, first in zip(again, found[0], strict=True):
            pd.testing.assert_frame_equal(frame, first, check_exact=True)
    assert asked
    assert len(asked) % 3 == 0  # two steps of a module, in two threads, want one norm


def of_stop(stop, make, size=1):
    """A measure that leaves the work for later."""
    return Later(lambda: [stop.labels | {"step": stop.step, "value": make(stop)}], size)


def table(run, make, size=1):
    walk = Walk([run], "values", at_steps(None))
    return walk.frame(walk.rows(partial(of_stop, make=make, size=size)), [*LABELS, "step", "value"])


def test_as_many_as_there_are_threads_are_measured_at_once_each_by_one(run, threads):
    together, names = threading.Barrier(threads, timeout=30), set()

    def make(stop):
        if len(names) < threads:  # ten stops do not divide by three
            names.add(threading.get_ident())
            together.wait()
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled() or threads == 1
        return 0.0

    frame = table(run, make)
    assert list(zip(frame["module"], frame["step"], strict=True)) == [(m, s) for m in run.modules for s in run.steps]
    assert len(names) == threads


def test_order_is_that_of_the_walk_whoever_is_done_first(run, threads):
    places = {(m, s): n for n, (m, s) in enumerate((m, s) for m in run.modules for s in run.steps)}

    def make(stop):
        place = places[stop.module, stop.step]
        sleep(0.01 * (place % 3 == 0))
        return place

    assert list(table(run, make)["value"]) == list(range(10))


def test_memory_is_bounded(run, threads, monkeypatch):
    monkeypatch.setattr(ahead, "ROOM", 100)
    lock, at_work, most = threading.Lock(), [], []

    def make(stop):
        with lock:
            at_work.append(stop)
            most.append((len(at_work), torch.get_num_threads()))
        sleep(0.002)
        with lock:
            at_work.remove(stop)
        return 0.0

    table(run, make, size=45)
    assert max(most)[0] == min(threads, 2)
    most.clear()
    table(run, make, size=60)  # no room for two
    assert set(most) == {(1, threads)}


def test_one_matrix_alone_gets_all_threads(run, threads):
    seen = []
    walk = Walk([run], "values", at_steps([1]), ["layers.0.*"])
    walk.rows(partial(of_stop, make=lambda stop: seen.append((threading.get_ident(), torch.get_num_threads()))))
    assert seen == [(threading.get_ident(), threads)]


def test_an_error_is_that_of_the_first_stop_and_says_where(run, threads):
    done = []

    def make(stop):
        if stop.module in (run.modules[2], run.modules[3]):
            raise NonFiniteError("it holds NaN")
        done.append(stop.module)
        return 0.0

    with pytest.raises(NonFiniteError, match=r"layers\.2\.query, at step 1: it holds NaN"):
        table(run, make)
    assert done[:4] == [run.modules[0]] * 2 + [run.modules[1]] * 2 or set(done) >= set(run.modules[:2])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("deltaw-matrix")]


@pytest.mark.parametrize("where", ["read", "measured"])
def test_what_stands_before_an_error_is_there_and_no_later_error_comes_first(run, threads, where):
    def measure(stop):
        place = 2 * run.modules.index(stop.module) + stop.step - 1
        if where == "read" and place == 5:
            raise NonFiniteError("five")

        def make():
            sleep(0.02 if place == 3 else 0)
            if place in (5, 6) or (where == "measured" and place == 4):
                raise NonFiniteError({4: "four", 5: "five", 6: "six"}[place])
            return [stop.labels | {"value": place}]

        return Later(make, 1)

    values = []

    def collect():
        for found in Walk([run], "values", at_steps(None)).measured(measure):
            values.append(found.rows[0]["value"])

    with pytest.raises(NonFiniteError, match="five" if where == "read" else "four"):
        collect()
    assert values == list(range(5 if where == "read" else 4))


def test_a_weight_that_is_damaged_is_named(tmp_path, threads):
    base, after = models()
    after["layers.3.query.weight"][2, 1] = torch.nan
    save_file(after, tmp_path / "model.safetensors")
    run = Trajectory.open(tmp_path / "model.safetensors", base=base)
    with pytest.raises(NonFiniteError, match=r"layers\.3\.query.* NaN"):
        run.spectra(cache=False)


def test_a_module_without_base_is_left_out(tmp_path, threads):
    base, after = models()
    save_file(after, tmp_path / "model.safetensors")
    del base["layers.1.query.weight"]
    run = Trajectory.open(tmp_path / "model.safetensors", base=base)
    with pytest.warns(DeltawWarning, match=r"1 module is left out, layers\.1\.query"):
        frame = run.spectra(cache=False)
    assert list(frame["module"]) == [f"layers.{n}.query" for n in (0, 2, 3, 4)]


def test_the_source_is_read_by_one_thread_at_a_time(run, threads, monkeypatch):
    lock = threading.Lock()
    for name in ("base", "weight"):

        def alone(*arguments, true):
            assert lock.acquire(blocking=False)
            try:
                sleep(0.001)
                return true(*arguments)
            finally:
                lock.release()

        monkeypatch.setattr(run, name, partial(alone, true=getattr(run, name)))
    frame = run.spectra(cache=False)
    assert len(frame) == 10
    assert spectra.MEASURES[0] in frame


def test_what_was_measured_is_kept_as_it_comes(run, threads, monkeypatch):
    from deltaw.analysis.tables.kept import keeper

    monkeypatch.setattr(keeper, "PAYS", 0.0)
    monkeypatch.setattr(keeper, "SETTLED", -1e9)
    first = run.spectra()
    monkeypatch.setattr(updates, "dense_spectrum", None)
    pd.testing.assert_frame_equal(run.spectra(), first, check_exact=True)


def test_threads_that_begin_later_are_not_left_with_one_of_torchs_threads(run, threads):
    spectra.spectra_table([run])
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [threads]

"""Matrices in files: many steps in one pass over their rows, read ahead, with the bits of each pair alone."""

import gc
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters.errors import RecordError
from deltaw.analysis import Trajectory, changes
from deltaw.analysis.records.storage import mapped
from deltaw.analysis.records.storage.files import LocalStorage
from deltaw.analysis.tables import one_pass, streamed

KINDS = ("consecutive", "base")
STEPS = 15  # more than are streamed together
SIDES = (301, 299)  # larger than what is read at once; no multiple of what the loops do together


def saved(folder: Path, dtype: torch.dtype, steps: int = STEPS, sides: tuple[int, int] = SIDES) -> Path:
    draw = torch.Generator().manual_seed(0)
    for step in range(steps + 1):
        where = folder / "run" / f"checkpoint-{step}" if step else folder / "base"
        where.mkdir(parents=True)
        tensors = {f"layers.{i}.query.weight": torch.randn(sides, generator=draw).to(dtype) for i in (0, 1)}
        save_file(tensors, where / "model.safetensors")
    return folder / "run"


def opened(folder: Path, **given) -> Trajectory:
    return Trajectory.open(folder / "run", **({"base": folder / "base"} | given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_table_is_that_of_the_pairs_alone_to_the_bit(dtype, threads, tmp_path, monkeypatch):
    saved(tmp_path, dtype)
    run = opened(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    frame = run.changes(KINDS, cache=False)
    assert len(frame) == 2 * 2 * (STEPS + STEPS - 1)
    for row in frame.iloc[::7].to_dict("records"):
        start = None if pd.isna(row["step_from"]) else row["step_from"]
        before, after = (run.weight(row["module"], step) for step in (start, row["step_to"]))
        alone = changes(before.clone(), after.clone(), row["axis"])[row["axis"]]
        assert (row["delta_m"], row["delta_d"]) == (alone.delta_m, alone.delta_d)


def test_matrices_stored_transposed_are_streamed_by_their_own_rows(tmp_path):
    draw = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
        weight = torch.randn(300, 900, generator=draw)
        save_file({"h.0.attn.c_attn.weight": weight}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    run = Trajectory.open(tmp_path, split=False)
    assert run.shape("h.0.attn.c_attn") == (900, 300)
    for row in run.changes("consecutive", cache=False).to_dict("records"):
        before, after = (run.weight(row["module"], row[key]).clone() for key in ("step_from", "step_to"))
        assert row["delta_d"] == changes(before, after)[row["axis"]].delta_d


@pytest.mark.parametrize("kinds", [KINDS, ("consecutive", "initial", "base")], ids=str)
def test_every_matrix_is_mapped_once_and_the_mappings_go(kinds, tmp_path, monkeypatch):
    saved(tmp_path, torch.float32)
    run = opened(tmp_path)
    read: Counter = Counter()
    bytes_of = LocalStorage._mapped_bytes

    def counted(self, name, start, length):
        read[self.file(name), start] += 1
        return bytes_of(self, name, start, length)

    monkeypatch.setattr(LocalStorage, "_mapped_bytes", counted)
    run.changes(kinds, cache=False)
    assert len(read) == 2 * (STEPS + 1)
    assert set(read.values()) == {1}
    gc.collect()
    assert not mapped._mappings
    assert not mapped._starts


def test_a_file_that_was_cut_is_an_error_of_its_own_stop(tmp_path, monkeypatch):
    saved(tmp_path, torch.float32)
    run = opened(tmp_path)
    cut = tmp_path / "run" / "checkpoint-5" / "model.safetensors"
    bring = streamed.bring

    def failing(tensor):
        if mapped.mapping_of(tensor).path == str(cut):
            raise RecordError(f"{cut}: cannot be read any more")
        bring(tensor)

    def until_the_error():
        kept = one_pass.OnePass(run, run.modules[0], one_pass.in_one_pass(run.pairs("consecutive")))
        for position, (_, step) in enumerate(kept.stops):
            kept.position = position
            try:
                kept.changes(("row",), False)
            except RecordError as error:
                return step, str(error)
        return None

    monkeypatch.setattr(streamed, "bring", failing)
    step, message = until_the_error()
    assert step == 5
    assert str(cut) in message
    monkeypatch.undo()
    with open(cut, "r+b") as file:
        os.truncate(file.fileno(), 1000)
    step, message = until_the_error()
    assert step == 5
    assert str(cut) in message


@pytest.mark.parametrize("how", ["in its place", "in another's place"])
def test_a_file_that_was_written_again_is_noticed(how, tmp_path):
    saved(tmp_path, torch.float32, steps=3)
    run = opened(tmp_path)
    run.changes(KINDS, cache=False)
    path = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    data = path.read_bytes()
    if how == "in its place":
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
    else:
        path.with_suffix(".new").write_bytes(data)
        path.with_suffix(".new").rename(path)
    with pytest.raises(RecordError, match=r"checkpoint-2/model\.safetensors: was written again since it was opened"):
        run.changes(KINDS, cache=False)
    assert len(opened(tmp_path).changes("consecutive", cache=False)) == 2 * 2 * 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs madvise of Linux")
def test_a_file_that_was_cut_after_it_was_mapped_is_an_error_and_no_signal(tmp_path):
    saved(tmp_path, torch.float32, steps=1)
    weight = opened(tmp_path).weight("layers.0.query", 1)
    mapped.bring(weight)
    path = tmp_path / "run" / "checkpoint-1" / "model.safetensors"
    with open(path, "r+b") as file:
        os.truncate(file.fileno(), 1000)
    with pytest.raises(RecordError, match=r"model\.safetensors: cannot be read any more"):
        mapped.bring(weight)


def test_what_a_user_wrote_into_a_matrix_of_a_file_stays(tmp_path):
    saved(tmp_path, torch.float32)
    run = opened(tmp_path)
    base = {f"{module}.weight": run.weight(module, 1).mul_(2) for module in run.modules}
    frame = opened(tmp_path, base=base).changes("base", axes="row", modules=["layers.0.query"], cache=False)
    doubled = changes(2 * run.weight("layers.0.query", 1), run.weight("layers.0.query", 1), "row")["row"]
    assert frame["delta_m"][0] == doubled.delta_m
    assert torch.equal(base["layers.0.query.weight"], 2 * run.weight("layers.0.query", 1))


PEAK = """
import sys, threading, time
import deltaw.analysis as analysis
small, whole = (analysis.Trajectory.open(f"{path}/run", base=f"{path}/base") for path in sys.argv[1:])
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
seen, done = [], False
def watch():
    while not done:
        seen.append(resident())
        time.sleep(0.0005)
small.changes(("consecutive", "base"), cache=False)
before = resident()
thread = threading.Thread(target=watch)
thread.start()
whole.changes(("consecutive", "base"), cache=False)
done = True
thread.join()
print(max(seen) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_at_most_four_matrices_are_in_memory(tmp_path):
    side = 2048  # code that is loaded on the way, some megabytes, weighs less
    saved(tmp_path / "small", torch.float32, steps=3, sides=(side, side))
    saved(tmp_path / "whole", torch.float32, steps=8, sides=(side, side))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "whole")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) / (4 * side**2) < 4

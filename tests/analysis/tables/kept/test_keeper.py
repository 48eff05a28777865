"""Kept tables: equal to the bit, measured anew where anything changed, and never in the way."""

import contextlib
import json
import math
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import BoRA, LoRA, inject
from deltaw.adapters.errors import DeltawWarning
from deltaw.adapters.peft.write import save_peft
from deltaw.analysis import Trajectory
from deltaw.analysis.inspection.inspect import inspect_run
from deltaw.analysis.records.recorded import RecordedSource
from deltaw.analysis.records.run_folder.repair import repair_run
from deltaw.analysis.tables import spectra
from deltaw.analysis.tables.changes import changes_table
from deltaw.analysis.tables.kept import files, keeper, keys
from deltaw.analysis.tables.kept.rows import without_labels
from deltaw.analysis.tables.registry import TABLES
from deltaw.analysis.tables.similarity import similarity_table
from deltaw.analysis.tables.spectra import spectra_table
from deltaw.analysis.tables.vectors import vector_changes
from deltaw.analysis.tables.work import Work
from deltaw.cli import main
from deltaw.trainers import Recorder

KEPT, FRESH = Work(cache=True), Work(cache=False)


@pytest.fixture(autouse=True)
def keep(monkeypatch, tmp_path):
    """Keep whatever was measured, however fast, and however young its files are."""
    monkeypatch.setattr(keeper, "PAYS", -1.0)
    monkeypatch.setattr(keeper, "EVERY", -1.0)
    monkeypatch.setattr(keeper, "SETTLED", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def record(folder, steps=(0, 1, 2)) -> None:
    torch.manual_seed(0)
    net = inject(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6)), BoRA(rank=2), targets=["*"])
    with Recorder(net, folder) as recorder:
        for step in steps:
            recorder.step(step)
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter += 0.1 * torch.randn(parameter.shape) * parameter.requires_grad


@pytest.fixture
def folder(tmp_path) -> Path:
    record(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def measured(monkeypatch) -> Counter:
    """How often each step of a recorded run is read."""
    read: Counter = Counter()
    state = RecordedSource.state

    def counted(self, module, step):
        read[step] += 1
        return state(self, module, step)

    monkeypatch.setattr(RecordedSource, "state", counted)
    return read


def changes(folder, work=KEPT) -> pd.DataFrame:
    return changes_table([Trajectory.open(folder)], ("consecutive", "base"), work=work)


def bits(frame: pd.DataFrame) -> list:
    """All values of a table, floats by their bits."""
    return [
        [x.hex() if isinstance(x, float) and not math.isnan(x) else repr(x) for x in frame[name].tolist()]
        for name in frame
    ]


def rows_of(folder) -> list[Path]:
    return sorted((folder / "tables").glob("*.rows"))


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("heads", "experts")])
def test_what_was_kept_is_what_is_measured_to_the_bit(folder, measured, name) -> None:
    options = {"intruders": {"k": 2, "steps": [1, 2]}, "amplification": {"ranks": [1, 2, 3], "steps": None}}.get(
        name, {}
    )
    make = TABLES[name].make
    fresh = make([Trajectory.open(folder)], **options)
    assert bits(make([Trajectory.open(folder)], work=KEPT, **options)) == bits(fresh)
    assert rows_of(folder)
    measured.clear()
    run = Trajectory.open(folder)
    run.name = "another name"
    again = make([run], work=KEPT, **options)
    assert not measured
    assert set(again["run"]) == {"another name"}
    assert bits(again.assign(run=fresh["run"])) == bits(fresh)
    assert list(again.dtypes) == list(fresh.dtypes)


def test_every_vector_is_kept_too(folder, measured) -> None:
    fresh = vector_changes([Trajectory.open(folder)], quantiles=None)
    vector_changes([Trajectory.open(folder)], quantiles=None, work=KEPT)
    measured.clear()
    assert bits(vector_changes([Trajectory.open(folder)], quantiles=None, work=KEPT)) == bits(fresh)
    assert not measured


def test_what_is_quick_is_not_kept(folder, monkeypatch) -> None:
    monkeypatch.setattr(keeper, "PAYS", 1000.0)
    before = sorted(os.listdir(folder))
    changes(folder)
    assert sorted(os.listdir(folder)) == before


def test_without_the_option_nothing_is_kept(folder) -> None:
    changes(folder, FRESH)
    assert not (folder / "tables").exists()


def overwrite(path: Path, scale: float) -> None:
    """Change the numbers of a file in its place: as many bytes, the same inode, and the time of the last writing."""
    before = path.stat()
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")  # behind the header
    with path.open("r+b") as file:
        file.seek(start)
        file.write((np.frombuffer(data[start:], np.float32) * np.float32(scale)).tobytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_ino, after.st_mtime_ns) == (before.st_size, before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("file", ["checkpoints/0000000001.safetensors", "base.safetensors"])
def test_a_changed_file_is_measured_anew(folder, measured, file) -> None:
    first = changes(folder)
    overwrite(folder / file, 1.5)
    measured.clear()
    again = changes(folder)
    assert measured[1]
    assert bits(again) == bits(changes(folder, FRESH)) != bits(first)
    measured.clear()
    assert bits(changes(folder)) == bits(again)
    assert not measured


def test_of_a_changed_checkpoint_the_others_stay_kept(folder, measured) -> None:
    spectra_table([Trajectory.open(folder)], work=KEPT)
    overwrite(folder / "checkpoints/0000000001.safetensors", 1.5)
    measured.clear()
    spectra_table([Trajectory.open(folder)], work=KEPT)
    assert set(measured) == {1}


def test_a_file_that_changes_after_the_run_was_opened_is_not_kept(folder) -> None:
    run = Trajectory.open(folder)
    time.sleep(0.05)  # the clock of files is that of the last tick; SETTLED is 0 here
    overwrite(folder / "checkpoints/0000000001.safetensors", 1.5)
    changes_table([run], ("consecutive", "base"), work=KEPT)
    kept = {key for path in rows_of(folder) for key in files.rows_in(path.read_bytes())}
    assert len(kept) == 2 * 2  # of two modules, step 0 and step 2 from the base


def test_a_file_that_is_seconds_old_is_not_kept(folder, monkeypatch) -> None:
    monkeypatch.setattr(keeper, "SETTLED", keys.SETTLED)
    changes(folder)
    assert not rows_of(folder)


def test_a_run_that_goes_on_is_measured_where_it_is_new(tmp_path, measured) -> None:
    record(tmp_path / "short")
    spectra_table([Trajectory.open(tmp_path / "short")], work=KEPT)
    record(tmp_path / "long", range(5))
    for step in (3, 4):
        shutil.copy(tmp_path / "long" / "checkpoints" / f"{step:010d}.safetensors", tmp_path / "short" / "checkpoints")
    for name in ("checkpoints.jsonl", "seal.json"):
        shutil.copy(tmp_path / "long" / name, tmp_path / "short")
    measured.clear()
    frame = spectra_table([Trajectory.open(tmp_path / "short")], work=KEPT)
    assert set(measured) == {3, 4}
    assert bits(frame) == bits(spectra_table([Trajectory.open(tmp_path / "short")]))


def test_what_was_interrupted_goes_on(folder, measured, monkeypatch) -> None:
    of_step, calls = spectra._of_step, []

    def interrupted(stop, **options):
        calls.append(stop.step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return of_step(stop, **options)

    interrupted.__module__, interrupted.__qualname__ = of_step.__module__, of_step.__qualname__
    monkeypatch.setattr(spectra, "_of_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spectra_table([Trajectory.open(folder)], work=KEPT)
    monkeypatch.setattr(spectra, "_of_step", of_step)
    measured.clear()
    frame = spectra_table([Trajectory.open(folder)], work=KEPT)
    assert measured[1] == measured[2]
    assert measured[0] < measured[1]
    assert bits(frame) == bits(spectra_table([Trajectory.open(folder)]))


@pytest.mark.parametrize("what", ["measures", "version", "device"])
def test_another_arithmetic_is_measured_anew(folder, measured, monkeypatch, what) -> None:
    spectra_table([Trajectory.open(folder)], work=KEPT)
    measured.clear()
    options = {"measures": ["frobenius"]} if what == "measures" else {}
    if what == "version":
        monkeypatch.setattr(keys, "_machine", lambda: ("another",))
    if what == "device":
        monkeypatch.setattr(keys, "_of_device", lambda device: "another")
    spectra_table([Trajectory.open(folder)], work=KEPT, **options)
    assert set(measured) == {0, 1, 2}


def hostile(line: bytes) -> dict[str, bytes]:
    _, _, text = line.partition(b" ")
    key = next(iter(files.rows_in(line)))

    def of(value) -> bytes:
        text = json.dumps({key: value}).encode()
        return files._checksum(text) + b" " + text + b"\n"

    return {
        "cut off": line[:-20],
        "changed": line.replace(b"0.", b"1.", 1),
        "empty": b"",
        "no checksum": text,
        "other bytes": os.urandom(1000),
        "a pickle": b"\x80\x04\x95",
        "deep": files._checksum(b"[" * 10**5) + b" " + b"[" * 10**5 + b"\n",
        "no mapping": files._checksum(b"[1]") + b" [1]\n",
        "a number": of(1),
        "a row that is none": of([1]),
        "a label": of([{"run": "x"}]),
        "an object": of([{"axis": {"pickle": "gASVAAAA"}}]),
        "an array of another kind": of([{"axis": {"object": "AAAA"}}]),
        "no base64": of([{"axis": {"float64": "%%%"}}]),
        "a long text": of([{"axis": "x" * 10**4}]),
        "a control character": of([{"axis": "\x1b[31m"}]),
        "a nested value": of([{"axis": {"nan": {"nan": "00"}}}]),
    }


@pytest.mark.parametrize("kind", sorted(hostile(files.line_of({"a": [{"x": 0.5}]}))))
def test_what_is_damaged_or_hostile_is_measured_anew(folder, measured, kind) -> None:
    frame = spectra_table([Trajectory.open(folder)], work=KEPT)
    for path in rows_of(folder):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(hostile(line)[kind] for line in lines))
    measured.clear()
    assert bits(spectra_table([Trajectory.open(folder)], work=KEPT)) == bits(frame)
    assert measured
    measured.clear()
    assert bits(spectra_table([Trajectory.open(folder)], work=KEPT)) == bits(frame)
    assert not measured


def test_a_pipe_a_link_and_a_file_of_another_are_not_read(folder, measured, monkeypatch) -> None:
    frame = spectra_table([Trajectory.open(folder)], work=KEPT)
    (path,) = rows_of(folder)
    elsewhere = folder.parent / "elsewhere"
    path.replace(elsewhere)
    path.symlink_to(elsewhere)
    os.mkfifo(path.with_name(path.name.replace(path.name[33:49], "0" * 16)))
    measured.clear()
    assert bits(spectra_table([Trajectory.open(folder)], work=KEPT)) == bits(frame)
    assert set(measured) == {0, 1, 2}


def test_a_link_in_the_place_of_the_folder_is_not_followed(folder, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "tables").symlink_to(tmp_path / "elsewhere")
    changes(folder)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert list((tmp_path / "cache" / "deltaw" / "tables").rglob("*.rows"))


def test_two_at_once_do_no_harm(folder, measured) -> None:
    run = Trajectory.open(folder)
    measure = spectra._of_step
    rows = [run.labels("0") | {"step": 0, "rank": 1}]
    with keeper.keeping(run, measure, "cpu", True) as one, keeper.keeping(run, measure, "cpu", True) as two:
        for step in range(3):
            one.add("0", (None, step), rows)
            two.add("0", (None, step), rows)
            two.add("1", (None, step), [row | {"module": "1", "layer": 1, "kind": "1"} for row in rows])
    with keeper.keeping(run, measure, "cpu", True) as three:
        assert three.find("0", [(None, 0), (None, 1), (None, 2)]) == {(None, step): rows for step in range(3)}


def test_many_small_files_become_one(folder, measured) -> None:
    for step in range(3):
        for pairs in ([(None, step)], [(None, step), (0, step)], [(None, step), (1, step)], [(2, step)]):
            changes_table([Trajectory.open(folder)], pairs, work=KEPT)
    assert len(rows_of(folder)) < files.MANY
    assert len({path.name[:32] for path in rows_of(folder)}) == 1
    measured.clear()
    changes(folder)
    assert not measured


def test_the_oldest_go_where_there_is_too_much(folder, monkeypatch) -> None:
    changes(folder)
    (old,) = rows_of(folder)
    os.utime(old, (0, 0))
    monkeypatch.setattr(files, "FOLDER_LIMIT", old.stat().st_size)
    spectra_table([Trajectory.open(folder)], work=KEPT)
    assert not old.exists()


def test_no_more_is_kept_than_a_file_may_hold(folder, monkeypatch) -> None:
    monkeypatch.setattr(files, "FILE_LIMIT", 1500)
    assert bits(spectra_table([Trajectory.open(folder)], work=KEPT)) == bits(spectra_table([Trajectory.open(folder)]))
    assert sum(path.stat().st_size for path in rows_of(folder)) <= 1500


def test_the_run_is_whole_with_its_tables(folder) -> None:
    before = inspect_run(folder)
    changes(folder)
    assert inspect_run(folder) == before
    assert Trajectory.open(folder).verify() == 4
    assert not repair_run(folder).dropped
    assert rows_of(folder)


# Runs that others saved


def full_models(folder: Path, steps=(1, 2)) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = {f"layers.{k}.query.weight": torch.randn(5, 4) for k in range(2)}
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        model = {name: value + 0.01 * step for name, value in base.items()}
        save_file(model, folder / f"checkpoint-{step}" / "model.safetensors")
    return base


def found_in_cache(tmp_path) -> list[Path]:
    return list((tmp_path / "cache" / "deltaw" / "tables").rglob("*.rows"))


def test_the_folder_of_another_program_stays_as_it_is(tmp_path) -> None:
    base = full_models(tmp_path / "run")
    save_file(base, tmp_path / "base.safetensors")
    before = sorted(map(str, (tmp_path / "run").rglob("*")))
    for _ in range(2):
        run = Trajectory.open(tmp_path / "run", base=tmp_path / "base.safetensors")
        assert bits(spectra_table([run], work=KEPT)) == bits(spectra_table([run]))
    assert sorted(map(str, (tmp_path / "run").rglob("*"))) == before
    assert len(found_in_cache(tmp_path)) == 1


def test_of_a_whole_model_a_changed_file_or_another_base_is_measured_anew(tmp_path) -> None:
    base = full_models(tmp_path / "run")
    save_file(base, tmp_path / "base.safetensors")

    def table(work, given="base.safetensors"):
        return spectra_table([Trajectory.open(tmp_path / "run", base=tmp_path / given)], work=work)

    first = table(KEPT)
    overwrite(tmp_path / "run" / "checkpoint-1" / "model.safetensors", 2.0)
    assert bits(table(KEPT)) == bits(table(FRESH)) != bits(first)
    (tmp_path / "other").mkdir()
    save_file({name: value * 3 for name, value in base.items()}, tmp_path / "other" / "model.safetensors")
    assert bits(table(KEPT, "other")) == bits(table(FRESH, "other")) != bits(first)


def test_of_an_adapter_its_tensors_its_configuration_and_its_base_count(tmp_path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6))
    base = {name: value.clone() for name, value in net.state_dict().items()}
    save_file(base, tmp_path / "base.safetensors")
    inject(net, LoRA(rank=2), targets=["*"])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape) * parameter.requires_grad
    for step in (1, 2):
        save_peft(net, tmp_path / "run" / f"checkpoint-{step}")

    def table(work):
        run = Trajectory.open(tmp_path / "run", base=tmp_path / "base.safetensors")
        return changes_table([run], ("base", "consecutive"), work=work)

    def anew(before) -> list:
        kept = set(found_in_cache(tmp_path)[0].read_bytes().splitlines()) if found_in_cache(tmp_path) else set()
        after = bits(table(KEPT))
        assert after == bits(table(FRESH)) != before
        assert {line for path in found_in_cache(tmp_path) for line in path.read_bytes().splitlines()} > kept
        return after

    found = anew(None)
    assert bits(table(KEPT)) == found
    assert len(found_in_cache(tmp_path)) == 1
    overwrite(tmp_path / "run" / "checkpoint-1" / "adapter_model.safetensors", 2.0)
    found = anew(found)
    config = tmp_path / "run" / "checkpoint-2" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": ', '"lora_alpha": 3'))
    config = tmp_path / "run" / "checkpoint-1" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": ', '"lora_alpha": 3'))
    found = anew(found)
    overwrite(tmp_path / "base.safetensors", 1.5)
    anew(found)


def test_a_pair_of_models_is_kept_by_the_files_of_both(tmp_path) -> None:
    for name, steps in (("a", (1,)), ("b", (2,))):
        full_models(tmp_path / name, steps)
    paths = [tmp_path / "a" / "checkpoint-1", tmp_path / "b" / "checkpoint-2"]
    first = spectra_table([Trajectory.from_pair(*paths)], work=KEPT)
    assert bits(spectra_table([Trajectory.from_pair(*paths)], work=KEPT)) == bits(first)
    assert len(found_in_cache(tmp_path)) == 1
    overwrite(paths[0] / "model.safetensors", 0.5)
    fresh = spectra_table([Trajectory.from_pair(*paths)])
    assert bits(spectra_table([Trajectory.from_pair(*paths)], work=KEPT)) == bits(fresh) != bits(first)


def test_a_missing_base_is_no_answer(tmp_path) -> None:
    base = full_models(tmp_path / "run")
    few = dict(list(base.items())[:1])
    save_file(few, tmp_path / "few.safetensors")
    for _ in range(2):
        with pytest.warns(DeltawWarning, match=r"left out, layers\.1\.query"):
            frame = similarity_table([Trajectory.open(tmp_path / "run", base=tmp_path / "few.safetensors")], work=KEPT)
        assert set(frame["module"]) == {"layers.0.query"}
    save_file(base, tmp_path / "all.safetensors")
    frame = similarity_table([Trajectory.open(tmp_path / "run", base=tmp_path / "all.safetensors")], work=KEPT)
    assert set(frame["module"]) == {"layers.0.query", "layers.1.query"}


def test_a_base_in_memory_is_not_kept(tmp_path) -> None:
    base = full_models(tmp_path / "run")
    spectra_table([Trajectory.open(tmp_path / "run", base=base)], work=KEPT)
    assert not found_in_cache(tmp_path)


def test_behind_an_address_what_has_no_mark_is_not_kept(tmp_path, folder) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/kept", recursive=True)
    try:
        changes("memory://kept")
        assert not found_in_cache(tmp_path)
    finally:
        memory.rm("/kept", recursive=True)


def test_behind_an_address_a_store_tells_what_changed(tmp_path, folder, measured, monkeypatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/kept", recursive=True)
    listing = type(memory).ls
    version = ["1"]

    def ls(self, path, detail=True, **options):
        found = listing(self, path, detail=detail, **options)
        return [entry | {"ETag": version[0]} for entry in found] if detail else found

    monkeypatch.setattr(type(memory), "ls", ls)
    try:
        fresh = changes("memory://kept")
        assert len(found_in_cache(tmp_path)) == 1
        measured.clear()
        assert bits(changes("memory://kept")) == bits(fresh)
        assert not measured
        version[0] = "2"
        changes("memory://kept")
        assert measured
    finally:
        memory.rm("/kept", recursive=True)


def test_in_the_folder_of_another_user_nothing_is_written(folder, monkeypatch) -> None:
    source = Trajectory.open(folder).source
    assert keeper.folders_of(source)[0] == folder / "tables"
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert folder / "tables" not in keeper.folders_of(source)


def test_where_nothing_can_be_written_it_is_said_and_measured(folder, tmp_path, monkeypatch) -> None:
    (folder / "tables").write_text("")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(DeltawWarning, match=r"is not kept for the next time.*Not a directory.*--no-cache") as said:
        frame = changes(folder)
    assert len(said) == 1
    assert bits(frame) == bits(changes(folder, FRESH))


@pytest.mark.parametrize("verb", [["changes"], ["rank", "--all-steps"], ["plot", "effective-rank", "--kind", "all"]])
def test_the_command_line_keeps_and_does_not(folder, tmp_path, verb, measured) -> None:
    words = [*verb, str(folder), *(["-o", str(tmp_path / "out.png")] if verb[0] == "plot" else [])]
    assert main([*words, "--no-cache"]) == 0
    assert not (folder / "tables").exists()
    assert main(words) == 0
    assert rows_of(folder)
    measured.clear()
    assert main(words) == 0
    assert not measured


@pytest.mark.filterwarnings("default")
def test_the_command_line_says_once_that_nothing_can_be_kept(folder, tmp_path, monkeypatch, capsys) -> None:
    (folder / "tables").write_text("")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["changes", str(folder)]) == 0
    assert capsys.readouterr().err.count("is not kept for the next time") == 1


def test_a_table_from_outside_is_not_kept(folder) -> None:
    def mine(stop):
        return [stop.labels | {"step": stop.step}]

    with keeper.keeping(Trajectory.open(folder), mine, "cpu", True) as one:
        one.add("0", (None, 0), [Trajectory.open(folder).labels("0") | {"step": 0}])
    assert not (folder / "tables").exists()


def test_rows_of_a_kind_that_is_not_kept_stop_nothing(folder) -> None:
    run = Trajectory.open(folder)
    with keeper.keeping(run, spectra._of_step, "cpu", True) as one:
        for step in range(3):
            one.add("0", (None, step), [run.labels("0") | {"step": object()}])
    assert not rows_of(folder)


def test_a_full_disk_is_said_once(folder, monkeypatch) -> None:
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "write", full)
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.warns(DeltawWarning, match="No space left on device"))
        frame = changes(folder)
    monkeypatch.undo()
    assert bits(frame) == bits(changes(folder, FRESH))


def test_rows_come_back_with_all_their_bits() -> None:
    odd = np.array([np.nan, -np.nan, np.inf, -0.0, 5e-324, 1 / 3])
    labels = {"run": "a", "method": "b", "module": "c", "layer": None, "kind": "d"}
    row = labels | {"x": odd, "y": np.float64(-np.nan), "z": -0.0, "n": np.int64(3), "t": True, "i": np.arange(3)}
    plain = without_labels([row], labels)
    (found,) = files.rows_in(files.line_of({"k": plain}))["k"]
    assert found["x"].tobytes() == odd.tobytes()
    assert np.float64(found["y"]).tobytes() == np.float64(-np.nan).tobytes()
    assert (math.copysign(1, found["z"]), found["n"], found["t"], found["i"].tolist()) == (-1, 3, True, [0, 1, 2])
    assert without_labels([{"x": 1}], labels) is None
    with pytest.raises(TypeError):
        files.line_of({"k": [{"x": object()}]})


@pytest.mark.parametrize(
    "forged",
    [{"nan": "00"}, {"nan": "zz"}, {"nan": 5}, {"float64": "AAAA"}, {"float64": 7}, {"object": "AA=="}, [1], {}],
    ids=["short-nan", "no-hex", "number", "half-a-number", "no-text", "object", "list", "empty"],
)
def test_a_forged_value_with_a_right_checksum_is_passed_over(forged) -> None:
    text = json.dumps({"a": [{"norm": forged}], "b": [{"norm": 1.0}]}).encode()
    assert files.rows_in(files._checksum(text) + b" " + text + b"\n") == {"b": [{"norm": 1.0}]}

"""Every bit of a record is under a checksum, and records of format versions 1 and 2 still open."""

import json
import os
import random

import pytest
import torch
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.adapters.errors import DeltawError, RecordError
from deltaw.analysis.records.run_folder.checked_lines import checked_line, fault, lines_of, relinked
from deltaw.analysis.records.run_folder.format import INDEX, MANIFEST, SCALARS
from deltaw.analysis.records.run_folder.lock import LOCK
from deltaw.analysis.records.run_folder.seal import SEAL
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder

FLIPS = 2000 if os.environ.get("CI") else 100


def make():
    torch.manual_seed(0)
    return inject(nn.Sequential(nn.Linear(6, 5)), LoRA(rank=2), targets=["0"])


def record(path, steps=range(4), **options):
    with Recorder(make(), path, **options) as recorder:
        for step in steps:
            recorder.step(step, loss=0.5 * step)
    return path


@pytest.fixture
def run(tmp_path):
    return record(tmp_path / "run")


def older(run, version):
    """Make of a run what format version 2, or 1, has: no checksums of manifest, index, log; no seal."""
    manifest = json.loads((run / MANIFEST).read_text())
    manifest |= {"version": version, "run_id": manifest["run_id"][:32]}
    if version == 1:
        del manifest["constants"]
    (run / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for name in (INDEX, SCALARS):
        rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
        rows = [{key: value for key, value in row.items() if key not in ("check", "final")} for row in rows]
        (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / SEAL).unlink()
    return run


def whole(run):
    """Whether it opens, and every checksum fits."""
    try:
        return bool(Trajectory.open(run).verify())
    except DeltawError:
        return False


def test_verify_catches_every_flipped_bit(run):
    assert Trajectory.open(run).verify() == 5
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != LOCK]
    assert {path.name for path in files} >= {MANIFEST, INDEX, SCALARS, SEAL, "base.safetensors"}
    rng = random.Random(0)
    for path in files:
        data = path.read_bytes()
        bits = range(8 * len(data))
        last = range(8 * len(data) - 8, 8 * len(data))
        for bit in {*last, *(bits if len(bits) < FLIPS else rng.sample(bits, FLIPS))}:
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert not whole(run), f"{path.name}: bit {bit} of {8 * len(data)}"
        path.write_bytes(data)
    assert Trajectory.open(run).verify() == 5


@pytest.mark.parametrize("name", [INDEX, SCALARS])
def test_verify_catches_every_line_that_is_gone_or_moved(name, run):
    lines = (run / name).read_bytes().splitlines(keepends=True)
    for at in range(len(lines)):
        (run / name).write_bytes(b"".join(lines[:at] + lines[at + 1 :]))
        with pytest.raises(RecordError, match=r"missing|changed|the index ends at line 3"):
            Trajectory.open(run).verify()
    if name == SCALARS:
        (run / name).write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
        with pytest.raises(RecordError, match="line 1 has the checksum of another place"):
            Trajectory.open(run).verify()


def test_each_fault_is_named(run):
    def message(path, change):
        data = path.read_text()
        path.write_text(change(data))
        with pytest.raises(RecordError) as told:
            Trajectory.open(run).verify()
        path.write_text(data)
        return str(told.value)

    assert "manifest.json: has another checksum" in message(
        run / MANIFEST, lambda t: t.replace('"info": {}', '"info":{} ')
    )
    assert "scalars.jsonl: line 2 has another checksum" in message(run / SCALARS, lambda t: t.replace("0.5", "0.7"))
    assert "seal.json: is damaged" in message(run / SEAL, lambda t: t.replace("true", "True"))
    (run / SEAL).unlink()
    with pytest.raises(RecordError, match=r"seal\.json: is missing"):
        Trajectory.open(run).verify()


def test_a_run_that_was_not_closed_is_whole_up_to_its_last_line(tmp_path):
    recorder = Recorder(make(), tmp_path / "run").__enter__()
    for step in range(3):
        recorder.step(step, loss=1.0)
        assert Trajectory.open(tmp_path / "run").verify() == step + 2
    with (tmp_path / "run" / INDEX).open("ab") as file:
        file.write(b'{"step": 3, "byt')
    assert Trajectory.open(tmp_path / "run").verify() == 4


@pytest.mark.parametrize("options", [{"keep": 2}, {"background": 2}, {"keep": 3, "background": 1}], ids=str)
def test_runs_that_drop_and_go_on_stay_under_checksums(options, tmp_path):
    run = record(tmp_path / "run", range(9), **options)
    record(run, range(5, 12), resume=True, **options)
    opened = Trajectory.open(run)
    assert opened.verify() == len(opened.steps) + 1
    assert opened.scalars()["step"].tolist() == list(range(12))
    lines = (run / INDEX).read_bytes().splitlines(keepends=True)
    (run / INDEX).write_bytes(b"".join(lines[:-1]))
    with pytest.raises(RecordError, match="the seal knows of"):
        Trajectory.open(run).verify()


@pytest.mark.parametrize("version", [1, 2])
def test_older_records_open_and_go_on(version, run):
    older(run, version)
    opened = Trajectory.open(run)
    assert opened.steps == [0, 1, 2, 3]
    assert opened.verify() == 5
    assert opened.scalars().to_dict("list") == {"step": [0, 1, 2, 3], "loss": [0.0, 0.5, 1.0, 1.5]}
    record(run, range(4, 6), resume=True)
    opened = Trajectory.open(run)
    assert opened.steps == [0, 1, 2, 3, 4, 5]
    assert opened.verify() == 7
    text = (run / INDEX).read_text()
    for changed in (text.replace('"step": 5', '"step": 6'), text.replace(text.splitlines(keepends=True)[1], "")):
        (run / INDEX).write_text(changed)
        with pytest.raises(RecordError):
            Trajectory.open(run).verify()


def test_a_version_that_was_flipped_down_is_no_way_out(run):
    text = (run / MANIFEST).read_text()
    (run / MANIFEST).write_text(text.replace('"version": 3', '"version": 2'))
    with pytest.raises(RecordError, match="another checksum"):
        Trajectory.open(run).verify()


def test_a_training_does_not_go_on_behind_a_changed_index(run):
    lines = (run / INDEX).read_bytes().splitlines(keepends=True)
    (run / INDEX).write_bytes(b"".join(lines[:1] + lines[2:]))
    with pytest.raises(RecordError, match=r"line 2 has the checksum of another place.*deltaw repair"):
        record(run, [9], resume=True)


def test_a_scalar_may_be_called_check(tmp_path):
    with Recorder(make(), tmp_path / "run") as recorder:
        recorder.step(0, check=3.0)
    assert Trajectory.open(tmp_path / "run").scalars()["check"].tolist() == [3.0]


def test_lines_are_linked_anew_where_some_are_taken_out():
    text, check = "", ""
    for step in range(5):
        line, check = checked_line({"step": step}, check)
        text += line
    lines = text.encode().splitlines()
    assert fault(lines_of(text.encode()), old=False) is None
    assert "line 3" in fault(lines_of(b"\n".join([*lines[:2], *lines[3:], b""])), old=False)
    assert fault(lines_of(relinked([*lines[:2], *lines[3:]])), old=False) is None
    broken = [lines[0], lines[1].replace(b"1", b"7", 1), *lines[2:]]
    assert "line 2" in fault(lines_of(relinked(broken)), old=False)


# --- headers ---


def rename_header(path, change):
    """Let a safetensors file say something else of the same bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + length])), separators=(",", ":")).encode()
    assert len(header) <= length
    path.write_bytes(data[:8] + header.ljust(length) + data[8 + length :])


def turned(name):
    def change(header):
        return header | {name: header[name] | {"shape": header[name]["shape"][::-1]}}

    return change


def retyped(name, dtype):
    def change(header):
        return header | {name: header[name] | {"dtype": dtype}}

    return change


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("base.safetensors", turned("0"), r"base\.safetensors: 0 is \(6, 5\), it should be \(5, 6\)"),
        ("base.safetensors", retyped("0", "I32"), "0 is int32, the manifest says float32"),
        ("checkpoints/0000000002.safetensors", turned("0.lora_A"), r"0\.lora_A is \(6, 2\), it should be \(2, 6\)"),
        ("checkpoints/0000000002.safetensors", lambda header: {"0.lora_B": header["0.lora_B"]}, "0000000002"),
    ],
)
def test_opening_says_if_a_header_lies(file, change, words, run):
    rename_header(run / file, change)
    with pytest.raises(RecordError, match=words):
        Trajectory.open(run)


@pytest.mark.parametrize("how", ["in its place", "in another's place"])
@pytest.mark.parametrize("file", ["base.safetensors", "checkpoints/0000000002.safetensors"])
def test_a_file_that_was_written_again_is_noticed(file, how, run):
    """Its size and its header are the same, and so only its place and time tell."""
    opened, path = Trajectory.open(run), run / file
    opened.weight("0", 2)
    data = path.read_bytes()
    if how == "in its place":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(path, ns=(1, 1))
    else:
        path.with_suffix(".new").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        path.with_suffix(".new").rename(path)
    with pytest.raises(RecordError, match=f"{path.name}: was written again since it was opened; open the run again"):
        opened.weight("0", 2)
    Trajectory.open(run).weight("0", 2)

"""Repairing a run: what is whole is saved, and nothing is guessed."""

import json
import os
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.adapters.errors import DeltawError, OptionError, RecordError
from deltaw.analysis.records.run_folder.format import BASE, INDEX, MANIFEST, SCALARS, checkpoint_path
from deltaw.analysis.records.run_folder.repair import repair_run
from deltaw.analysis.records.run_folder.seal import SEAL
from deltaw.analysis.trajectory import Trajectory
from deltaw.cli import main
from deltaw.trainers import Recorder

STEPS = [0, 1, 2, 3, 4]
FLIPS = 500 if os.environ.get("CI") else 40


def make(step=0):
    torch.manual_seed(0)
    model = inject(nn.Sequential(nn.Linear(6, 5)), LoRA(rank=2), targets=["0"])
    with torch.no_grad():
        model[0].lora_B += step
    return model


def record(path, steps=STEPS, **options):
    model = make()
    with Recorder(model, path, **options) as recorder:
        for step in steps:
            model.load_state_dict(make(step).state_dict())
            recorder.step(step, loss=0.5 * step)
    return path


@pytest.fixture
def run(tmp_path):
    return record(tmp_path / "run")


def rewritten(path, change):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(change(lines)))


def files(run):
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def is_whole(run, steps, rows=None):
    opened = Trajectory.open(run)
    assert opened.steps == steps
    assert opened.verify() == len(steps) + 1
    for step in steps:
        assert torch.equal(opened.state("0", step)["lora_B"], make(step)[0].lora_B)
    if rows is not None:
        assert opened.scalars()["step"].tolist() == rows
    assert repair_run(run).whole
    record(run, [9], resume=True)  # and it can be gone on with
    assert Trajectory.open(run).verify() == len(steps) + 2


def test_a_whole_run_is_left_as_it_is(run):
    before = files(run)
    for dry_run in (True, False):
        done = repair_run(run, dry_run=dry_run)
        assert done.whole
        assert done.steps == STEPS
        assert done.found == done.dropped == done.written == done.kept == []
    assert files(run) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines[:2], lines[2][:20] + "\n", *lines[3:]],
        lambda lines: [*lines[:2], lines[2][:20] + lines[3], *lines[4:]],
        lambda lines: [*lines[:2], *lines[3:]],
        lambda lines: [lines[0], *lines[3:]],
        lambda lines: lines[1:],
        lambda lines: lines[:-1],
        lambda lines: lines[:-2],
        lambda lines: [*lines[:3], lines[2], *lines[3:]],
        lambda lines: [*lines[:2], lines[0], *lines[2:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines[:-1], lines[-1][:-1] + "\v"],
        lambda lines: [*lines[:2], lines[2].replace('"check"', '"chick"'), *lines[3:]],
        lambda lines: [*lines[:2], lines[2].replace('"step": 2', '"step": 6'), *lines[3:]],
        lambda lines: [],
    ],
    ids=[
        "cut line",
        "two lines joined",
        "one line missing",
        "two lines missing",
        "first line missing",
        "last line missing",
        "last two missing",
        "a line twice",
        "an earlier line again",
        "two lines exchanged",
        "another line end",
        "another key",
        "another step",
        "empty",
    ],
)
def test_an_index_comes_back_whole_where_the_files_are(change, run):
    rewritten(run / INDEX, change)
    damaged = (run / INDEX).read_bytes()
    before = files(run)
    done = repair_run(run, dry_run=True)
    assert (done.whole, done.kept, done.steps) == (False, [], STEPS)
    assert files(run) == before
    assert repair_run(run).steps == STEPS
    assert (run / f"{INDEX}.damaged-1").read_bytes() == damaged
    is_whole(run, STEPS, STEPS)


def test_a_checkpoint_that_was_changed_is_dropped_and_kept_beside(run):
    path = checkpoint_path(run, 2)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    checkpoint_path(run, 4).unlink()
    done = repair_run(run)
    assert [line.split(": it was")[0].split(" has checksum")[0] for line in done.dropped] == [
        f"{INDEX}: line 3 announces step 2, but checkpoints/0000000002.safetensors:",
        f"{INDEX}: line 5 announces step 4, but checkpoints/0000000004.safetensors: is missing, though the record "
        "announces it",
    ]
    assert not path.exists()
    assert path.with_name(path.name + ".damaged-1").exists()
    is_whole(run, [0, 1, 3], STEPS)


def test_a_checkpoint_that_nothing_announces_is_adopted_only_where_asked(run):
    shutil.copy(checkpoint_path(run, 4), checkpoint_path(run, 7))
    (run / "checkpoints" / "notes.safetensors").write_bytes(b"mine")
    tensors = load_file(checkpoint_path(run, 4))
    save_file({name: torch.full_like(value, torch.nan) for name, value in tensors.items()}, checkpoint_path(run, 5))
    save_file(tensors | {"0.lora_A": torch.ones(3, 6)}, checkpoint_path(run, 6))
    save_file(tensors | {"other": torch.ones(3, 6)}, checkpoint_path(run, 8))
    done = repair_run(run)
    assert done.whole
    assert done.unannounced[2].endswith("0000000007.safetensors: is announced by no line; --adopt takes it as it is")
    for line, words in zip(
        (done.unannounced[0], done.unannounced[1], done.unannounced[3]),
        ("NaN or infinity", r"(3, 6), it should be (2, 6)", "'other'"),
        strict=True,
    ):
        assert "cannot be adopted" in line
        assert words in line
    assert repair_run(run, adopt=True).steps == [*STEPS, 7]
    assert Trajectory.open(run).verify() == 7
    assert torch.equal(Trajectory.open(run).state("0", 7)["lora_B"], make(4)[0].lora_B)


def test_rows_of_the_log_stay_where_their_own_checksum_fits(run):
    def change(lines):
        lines[1] = lines[1].replace("0.5", "0.7")
        lines[3] = "\0" * 30 + "\n"
        return lines

    rewritten(run / SCALARS, change)
    done = repair_run(run)
    assert done.dropped == [f"{SCALARS}: line 2 was changed", f"{SCALARS}: line 4 cannot be read"]
    is_whole(run, STEPS, [0, 2, 4])


def test_rows_whose_newline_was_lost_are_two(run):
    data = (run / SCALARS).read_bytes()
    for instead in (b"", b"\x0b", b"J"):
        lines = data.split(b"\n")
        (run / SCALARS).write_bytes(b"\n".join([lines[0] + instead + lines[1], *lines[2:]]))
        assert repair_run(run).dropped == []
        assert (run / SCALARS).read_bytes() == data
    is_whole(run, STEPS, STEPS)


def test_a_flipped_bit_anywhere_is_repaired_or_what_it_hit_is_dropped(run):
    rng = random.Random(3)
    original = files(run)
    for name, data in original.items():
        for _ in range(FLIPS // 5 if name == MANIFEST else FLIPS):
            bit = rng.randrange(8 * len(data))
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            (run / name).write_bytes(flipped)
            if name == BASE:
                with pytest.raises(RecordError, match="put it back from a copy"):
                    repair_run(run)
            else:
                assert not repair_run(run).whole, (name, bit)
                opened = Trajectory.open(run)
                opened.verify()
                assert len(opened.steps) == 5 - name.startswith("checkpoints/")
                assert len(opened.scalars()) in ((4, 5) if name == SCALARS else (5,))
                if name in (MANIFEST, INDEX, SEAL):
                    assert (run / name).read_bytes() == data, (name, bit)
            shutil.rmtree(run)
            for file, content in original.items():
                (run / file).parent.mkdir(parents=True, exist_ok=True)
                (run / file).write_bytes(content)


def test_a_manifest_comes_back_where_its_checksum_proves_it(run):
    data = (run / MANIFEST).read_bytes()
    raw = json.loads(data)
    raw["base"] = None
    raw["modules"]["0"] |= {"shape": [0], "dtype": 7}
    (run / MANIFEST).write_text(json.dumps(raw))
    done = repair_run(run)
    assert done.restored == [f"{MANIFEST}: put back, its checksum proves it"]
    assert (run / MANIFEST).read_bytes() == data
    is_whole(run, STEPS, STEPS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("{"),
        lambda path: path.write_text(path.read_text().replace('"alpha"', '"beta"').replace("lora", "dora")),
    ],
)
def test_methods_and_options_are_not_guessed(damage, run):
    damage(run / MANIFEST)
    before = files(run)
    with pytest.raises(RecordError, match="stand in no other file; put it back from a copy"):
        repair_run(run)
    assert files(run) == before


def test_where_nothing_is_whole_nothing_is_written(run):
    for step in STEPS:
        checkpoint_path(run, step).write_bytes(b"")
    (run / SCALARS).unlink()
    before = files(run)
    with pytest.raises(RecordError, match=r"nothing can be saved: .*line 1 announces step 0"):
        repair_run(run)
    assert files(run) == before


def test_old_damaged_records_are_repaired(run):
    """Of format version 2: no checksums of lines, the same line twice, and a torn one in the middle."""
    manifest = json.loads((run / MANIFEST).read_text())
    manifest |= {"version": 2, "run_id": manifest["run_id"][:32]}
    (run / MANIFEST).write_text(json.dumps(manifest, indent=1))
    (run / SEAL).unlink()
    lines = [json.loads(line) for line in (run / INDEX).read_text().splitlines()]
    old = [json.dumps({key: line[key] for key in ("step", "bytes", "sha256")}) + "\n" for line in lines]
    (run / INDEX).write_text("".join([old[0], old[1], old[0], old[2][:20], "\n", *old[3:], old[4]]))
    (run / SCALARS).write_text('{"step": 0, "loss": 0.5}\n{"step": 1, "lo\n{"step": 2, "loss": null}\n')
    assert repair_run(run).steps == [0, 1, 3, 4]
    opened = Trajectory.open(run)
    assert opened.verify() == 5
    assert opened.scalars()["step"].tolist() == [0, 2]
    assert repair_run(run, adopt=True).steps == STEPS


def test_a_run_in_use_or_elsewhere_is_refused(run, tmp_path):
    with Recorder(make(), run, resume=True), pytest.raises(RecordError, match="being recorded to"):
        repair_run(run)
    with pytest.raises(OptionError, match="is an address"):
        repair_run("s3://bucket/run")
    with pytest.raises(RecordError, match="no such folder"):
        repair_run(tmp_path / "nowhere")
    (run / SCALARS).rename(tmp_path / "log")
    (run / SCALARS).symlink_to(tmp_path / "log")
    with pytest.raises(RecordError, match="symbolic link"):
        repair_run(run)


def test_the_verb(run, capsys):
    assert main(["repair", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: is whole, with 5 checkpoints\n"
    rewritten(run / INDEX, lambda lines: [*lines[:2], "{\n", *lines[3:]])
    assert main(["repair", str(run), "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"{run}: would write checkpoints.jsonl; 5 checkpoints"
    assert main(["repair", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == STEPS
    assert found["kept"] == [f"{INDEX}.damaged-1"]
    (run / MANIFEST).unlink()
    assert main(["repair", str(run)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert issubclass(RecordError, DeltawError)

"""Recording: whole or not at all, never two runs mixed, and nothing in the training changed."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from deltaw.adapters import METHODS, LoRA, RecordError, TargetError, adapted, create, effective_weight, inject
from deltaw.adapters.methods.registry import options_of
from deltaw.analysis.records.run_folder.format import (
    BASE,
    INDEX,
    MANIFEST,
    SCALARS,
    checkpoint_path,
    read_index,
    read_scalars,
)
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder, at, epochs, every, geometric


def make(method="bora", dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Dropout(0.3), nn.Linear(10, 2)).to(dtype)
    chosen = create(method, **({"rank": 2} if "rank" in options_of(method) else {}))
    return inject(model, chosen, targets=["0"], trainable=["2"], context={"0": torch.eye(12)})


def train(model, recorder=None, steps=6):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(7)
    losses = []
    for step in range(1, steps + 1):
        loss = model(torch.randn(8, 12, dtype=next(model.parameters()).dtype)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if recorder is not None:
            recorder.step(step, loss=loss.item())
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_recording_changes_nothing_and_reads_back_bit_for_bit(method, tmp_path):
    plain = make(method)
    losses = train(plain)
    model = make(method)
    seen = {}
    with Recorder(model, tmp_path / "run", modules=["0"], when=every(2), method=method) as recorder:
        recorder.step(0)
        original = recorder.record

        def record(step):
            original(step)
            seen[step] = effective_weight(model[0]).clone()

        recorder.record = record
        assert train(model, recorder) == losses
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)

    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 2, 4, 6]
    assert run.method == method
    assert run.modules == ["0"]
    for step, weight in seen.items():
        assert torch.equal(run.weight("0", step), weight)
    assert run.scalars()["loss"].tolist() == losses
    assert run.verify() == 5


def test_adapters_are_recorded_as_their_parameters(tmp_path):
    model = make("lora")
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.record(0)
    entry = read_index(tmp_path / "run")[0]
    assert entry.file.bytes < 2 * 4 * 2 * (12 + 10) + 400  # two small matrices and a header
    assert set(Trajectory.open(tmp_path / "run").state("0", 0)) == {"lora_A", "lora_B"}


def test_default_modules(tmp_path):
    with Recorder(make("bora"), tmp_path / "adapted") as recorder:
        assert list(recorder.modules) == ["0"]
    with Recorder(make("ft"), tmp_path / "full") as recorder:
        assert list(recorder.modules) == ["0", "2"]
    with pytest.raises(TargetError, match="no linear layer"):
        Recorder(nn.Sequential(nn.ReLU()), tmp_path / "none")
    with pytest.raises(TargetError, match="nothing_here"):
        Recorder(make(), tmp_path / "none", modules=["nothing_here"])
    assert not (tmp_path / "none").exists()


def test_a_folder_with_a_run_is_refused_and_left_alone(tmp_path):
    with Recorder(make(), tmp_path / "run") as recorder:
        recorder.record(0)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    with pytest.raises(RecordError, match="already holds a run"), Recorder(make(), tmp_path / "run"):
        pass
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before


def test_resume_goes_on_and_drops_what_training_went_back_behind(tmp_path):
    path = tmp_path / "run"
    model = make()
    with Recorder(model, path) as recorder:
        for step in range(5):
            recorder.step(step, loss=float(step))
    with Recorder(model, path, resume=True) as recorder:
        assert recorder.steps == [0, 1, 2, 3, 4]
        recorder.step(3, loss=30.0)
        recorder.step(4, loss=40.0)
    run = Trajectory.open(path)
    assert run.steps == [0, 1, 2, 3, 4]
    assert run.scalars()["loss"].tolist() == [0, 1, 2, 30, 40]
    assert run.verify() == 6


@pytest.mark.parametrize("change", ["method", "rank", "modules", "base"])
def test_resume_refuses_another_run(change, tmp_path):
    path = tmp_path / "run"
    with Recorder(make("lora"), path) as recorder:
        recorder.record(0)
    model = make("lora")
    if change == "method":
        model = make("bora")
    elif change == "rank":
        torch.manual_seed(0)
        model = inject(nn.Sequential(nn.Linear(12, 10)), LoRA(rank=3), targets=["0"])
    elif change == "modules":
        torch.manual_seed(0)
        model = inject(nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 2)), LoRA(rank=2), targets=["0", "1"])
    else:
        with torch.no_grad():
            model[0].weight[0, 0] += 1
    with pytest.raises(RecordError, match="cannot be resumed"), Recorder(model, path, resume=True):
        pass
    assert Trajectory.open(path).verify() == 2


def test_two_recorders_on_one_folder(tmp_path):
    with (
        Recorder(make(), tmp_path / "run"),
        pytest.raises(RecordError, match="another process"),
        Recorder(make(), tmp_path / "run", resume=True),
    ):
        pass
    with Recorder(make(), tmp_path / "run", resume=True):
        pass


def test_steps_must_rise_and_the_recorder_must_be_open(tmp_path):
    recorder = Recorder(make(), tmp_path / "run")
    with pytest.raises(RecordError, match="not open"):
        recorder.step(0)
    with recorder:
        recorder.record(4)
        recorder.record(4)
        with pytest.raises(RecordError, match="rise"):
            recorder.record(3)
    assert Trajectory.open(tmp_path / "run").steps == [4]


def test_tied_and_transposed_weights_are_stored(tmp_path):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), conv1d(5, 4))
    model[1].weight = model[0].weight
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.record(0)
    run = Trajectory.open(tmp_path / "run")
    assert torch.equal(run.weight("1", 0), model[0].weight)
    assert torch.equal(run.base("2"), model[2].weight.T)
    assert run.manifest.modules["2"].shape == (5, 4)


def test_peft_layers_are_recorded_as_their_effective_weight(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["0"], use_dora=True, init_lora_weights=False)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)), config)
    with Recorder(model, tmp_path / "run") as recorder:
        assert list(recorder.modules) == ["base_model.model.0"]
        recorder.record(0)
    run = Trajectory.open(tmp_path / "run")
    layer = model.base_model.model[0]
    assert torch.equal(run.weight(run.modules[0], 0), effective_weight(layer))
    assert torch.equal(run.base(run.modules[0]), layer.base_layer.weight)


# --- what can go wrong on a disk ---


FULL_DISK = """
import resource, sys
from torch import nn
from deltaw.adapters import WriteError
from deltaw.trainers import Recorder
with Recorder(nn.Sequential(nn.Linear(64, 64)), sys.argv[1]) as recorder:
    recorder.record(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # no file may grow further, as on a disk that fills up
    try:
        recorder.record(1)
    except WriteError as error:
        print(error)
"""


def test_a_full_disk_names_the_file_and_loses_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    assert "0000000001.safetensors" in done.stdout
    assert "cannot be written" in done.stdout
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0]
    assert run.verify() == 2
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["0000000000.safetensors"]


def endless(path, announced):
    """Record without end, and announce every step after its return."""
    torch.set_num_threads(1)
    with Recorder(make("lora"), path, resume=True) as recorder:
        for step in range(1_000_000):
            recorder.step(step, loss=0.1)
            os.write(announced, b"%d\n" % step)


def test_killed_at_any_moment_it_holds_all_that_was_announced(tmp_path):
    generator = random.Random(0)
    context = multiprocessing.get_context("fork")
    for round_number in range(12):
        path = tmp_path / f"run{round_number}"
        read, write = os.pipe()
        process = context.Process(target=endless, args=(str(path), write))
        process.start()
        os.close(write)
        os.read(read, 1)  # it has begun
        time.sleep(generator.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with os.fdopen(read) as file:
            lines = [line for line in file.read().splitlines(keepends=True) if line.endswith("\n")]
        run = Trajectory.open(path)
        count = len(lines) + 1 if not lines or lines[0] != "\n" else len(lines)
        assert run.steps == list(range(len(run.steps)))
        assert len(run.steps) >= count - 1
        assert run.verify() == len(run.steps) + 1
        with Recorder(make("lora"), path, resume=True) as recorder:  # and it can be gone on with
            recorder.step(len(run.steps), loss=0.2)
        assert Trajectory.open(path).verify() == len(run.steps) + 2


def test_killed_before_there_is_a_manifest_the_folder_can_be_used_again(tmp_path):
    path = tmp_path / "run"
    with Recorder(make(), path) as recorder:
        recorder.record(0)
    (path / MANIFEST).unlink()
    (path / INDEX).unlink()
    with Recorder(make(), path) as recorder:
        recorder.record(0)
    assert Trajectory.open(path).verify() == 2


@pytest.fixture
def run_folder(tmp_path):
    model = make("lora")
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0, loss=1.0)
        recorder.step(1, loss=2.0)
    return tmp_path / "run"


def test_a_cut_last_line_announces_nothing(run_folder):
    for name in (INDEX, SCALARS):
        path = run_folder / name
        path.write_bytes(path.read_bytes()[:-5])
    assert Trajectory.open(run_folder).steps == [0]
    assert [row["step"] for row in read_scalars(run_folder)] == [0]
    with Recorder(make("lora"), run_folder, resume=True) as recorder:
        recorder.step(1, loss=3.0)
    assert Trajectory.open(run_folder).steps == [0, 1]
    assert [row["loss"] for row in read_scalars(run_folder)] == [1.0, 3.0]


def damage_newer(path):
    raw = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(raw | {"version": 99}))


def damage_truncated(path):
    file = checkpoint_path(path, 1)
    file.write_bytes(file.read_bytes()[:-1])


def damage_missing(path):
    checkpoint_path(path, 1).unlink()


def damage_base(path):
    (path / BASE).write_bytes(b"")


def damage_line(path):
    (path / INDEX).write_text("{}\n" + (path / INDEX).read_text())


def damage_order(path):
    lines = (path / INDEX).read_text().splitlines(keepends=True)
    (path / INDEX).write_text("".join(reversed(lines)))


def damage_method(path):
    text = (path / MANIFEST).read_text().replace('"method": "lora"', '"method": "lorax"')
    (path / MANIFEST).write_text(text)


def damage_json(path):
    (path / MANIFEST).write_text("{")


def damage_gone(path):
    shutil.rmtree(path)


def damage_manifest(path):
    (path / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_newer, "install -U deltaw"),
        (damage_truncated, "0000000001.safetensors.*truncated"),
        (damage_missing, "0000000001.safetensors.*missing"),
        (damage_base, "base.safetensors.*truncated"),
        (damage_line, "line 1 is damaged"),
        (damage_order, "steps must rise"),
        (damage_method, "lorax"),
        (damage_json, "not JSON"),
        (damage_gone, "no such folder"),
        (damage_manifest, "not a recorded run"),
    ],
)
def test_damage_is_named(damage, words, run_folder):
    damage(run_folder)
    with pytest.raises(RecordError, match=words):
        Trajectory.open(run_folder)


def test_a_changed_checkpoint_fails_its_checksum(run_folder):
    file = checkpoint_path(run_folder, 1)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    run = Trajectory.open(run_folder)
    with pytest.raises(RecordError, match=r"0000000001\.safetensors.*checksum"):
        run.verify()


def test_a_file_that_lies_about_its_tensors(run_folder):
    shutil.copy(run_folder / BASE, checkpoint_path(run_folder, 1))
    raw = [json.loads(line) for line in (run_folder / INDEX).read_text().splitlines()]
    raw[1]["bytes"] = (run_folder / BASE).stat().st_size
    (run_folder / INDEX).write_text("".join(json.dumps(line) + "\n" for line in raw))
    with pytest.raises(RecordError, match="lacks the tensor"):
        Trajectory.open(run_folder).weight("0", 1)


def test_schedules():
    chosen = {
        "every": [s for s in range(10) if every(4)(s)],
        "at": [s for s in range(10) if at([1, 7])(s)],
        "geometric": [s for s in range(200) if geometric(3, 2.5)(s)],
        "epochs": [s for s in range(30) if epochs(5, 2)(s)],
    }
    assert chosen == {
        "every": [0, 4, 8],
        "at": [1, 7],
        "geometric": [0, 3, 8, 19, 47, 117],
        "epochs": [0, 10, 20],
    }
    for bad in (lambda: every(0), lambda: geometric(0), lambda: geometric(1, 1.0), lambda: epochs(0)):
        with pytest.raises(ValueError, match="not"):
            bad()


def by_hand(parameters):
    """An optimizer of one's own, no class of torch's."""

    class Plain:
        def step(self):
            with torch.no_grad():
                for p in parameters:
                    p -= 1e-2 * p.grad

        def zero_grad(self):
            for p in parameters:
                p.grad = None

    return Plain()


@pytest.mark.parametrize(
    "optimize",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-2),
        lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),  # raises no version counter
        lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
        lambda p: torch.optim.SGD(p, lr=1e-2, weight_decay=0.1),
        by_hand,
    ],
)
def test_dual_lora_records_its_ramp(optimize, tmp_path):
    method = create("dual-lora", rank=2, warmup_steps=4)
    model = inject(nn.Sequential(nn.Linear(12, 10)).double(), method, targets=["0"])
    layer = adapted(model)["0"]
    optimizer = optimize([p for p in layer.parameters() if p.requires_grad])
    ramps = []
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
        for step in range(1, 7):
            for _ in range(2):  # gradient accumulation: two passes a step
                model(torch.randn(3, 12, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.step(step)
    run = Trajectory.open(tmp_path / "run")
    for step in run.steps:
        state = run.state("0", step)
        ramps.append(float(layer.method.ramp(state)))
        assert (run.update("0", step).norm() > 0) == (step > 0)
    assert ramps == [0, 0.25, 0.5, 0.75, 1, 1, 1]

"""Measuring on a device. There is none here: one that pretends shows where a matrix is and where it is not."""

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils import backend_registration

from deltaw.adapters import METHODS, inject
from deltaw.adapters.errors import DeltawWarning, OptionError
from deltaw.adapters.method import ScaledLowRank
from deltaw.adapters.peft.write import save_peft
from deltaw.analysis import Trajectory
from deltaw.analysis.measures.built import built_sums
from deltaw.analysis.measures.built_on_device import sums_on_device
from deltaw.analysis.records.recorded import RecordedSource
from deltaw.analysis.tables import device, regions
from deltaw.analysis.tables.changes import changes_table
from deltaw.analysis.tables.registry import TABLES
from deltaw.analysis.tables.work import Work
from deltaw.cli import main

METHODS_THERE = ("lora", "bora", "dora", "sbora-fa", "vera", "dual-lora", "ft")
CARD = Path(__file__).with_name("card.py")


def record(folder: Path, method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(query=nn.Linear(12, 9), up=nn.Linear(9, 12)))
    inject(net, METHODS[method](**({} if method == "ft" else {"rank": 2})), targets=["*"])
    from deltaw.trainers import Recorder

    with Recorder(net, folder) as recorder:
        for step in range(3):
            recorder.step(step)
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter += 0.1 * torch.randn(parameter.shape) * parameter.requires_grad


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS_THERE:
        record(folder / method, method)
    return folder


@pytest.fixture(scope="module")
def card(runs) -> dict:
    """What a process with a device that is none found."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip(f"torch {torch.__version__} has no devices of Python code")
    done = subprocess.run(
        [sys.executable, "-W", "error", CARD, runs],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", [*(name for name in TABLES if name != "experts"), "matrix"])
@pytest.mark.parametrize("method", METHODS_THERE)
def test_a_table_is_made_on_the_device_with_the_same_digits(card, method, name) -> None:
    least = (
        1e-8 if name in ("vectors", "heads") or method == "bora" else 1e-12
    )  # a step from the base is rounding alone there
    assert card["tables"][f"{method} {name}"] < least


@pytest.mark.parametrize("name", ["overlap", "angles"])
def test_directions_of_two_runs_are_found_on_the_device(card, name) -> None:
    assert card["tables"][name] < 1e-9


def test_measures_of_large_matrices_stay_on_the_device(card) -> None:
    assert len(card["measures"]) == 15
    assert max(card["measures"].values()) < 1e-9


def test_copies_run_on_a_stream_that_is_waited_for(card) -> None:
    assert card["devices"] == ["cpu", "card:0"]
    assert card["waited"] > 100
    assert card["recorded"] >= card["waited"]


def test_the_sums_on_a_device_are_those_of_the_compiled_loop(monkeypatch) -> None:
    monkeypatch.setattr("deltaw.analysis.measures.built_on_device.BLOCK", 64)
    draw = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    base = random(23, 17).float()
    forms = [ScaledLowRank(random(23), random(17), random(23, 3), random(3, 17)) for _ in range(3)]
    pairs = [(-1, 0), (0, 1), (-1, 2), (1, 2)]
    have, want = sums_on_device(base, forms, pairs), built_sums(base, forms, pairs)
    for axis in ("row", "column"):
        for x, y in zip(have[axis], want[axis], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)


def whole_models(folder: Path) -> Trajectory:
    """Checkpoints of a model with a matrix that holds three: query, key and value."""
    torch.manual_seed(0)
    base = {"layers.0.attn.qkv_proj.weight": torch.randn(12, 4), "layers.0.mlp.up.weight": torch.randn(8, 4)}
    for step in (1, 2, 3):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        model = {name: value + 0.1 * step * torch.randn(value.shape) for name, value in base.items()}
        save_file(model, folder / f"checkpoint-{step}" / "model.safetensors")
        config = {"model_type": "phi3", "num_attention_heads": 2, "num_key_value_heads": 2}
        (folder / f"checkpoint-{step}" / "config.json").write_text(json.dumps(config))
    save_file(base, folder / "base.safetensors")
    run = Trajectory.open(folder, base=folder / "base.safetensors")
    assert "layers.0.attn.qkv_proj.key" in run.modules
    return run


def adapters(folder: Path) -> Trajectory:
    """Adapters of PEFT on a base."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 12))
    save_file({name: value.clone() for name, value in net.state_dict().items()}, folder.with_suffix(".safetensors"))
    inject(net, METHODS["dora-row"](rank=2), targets=["*"])
    for step in (1, 2):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.1 * torch.randn(parameter.shape) * parameter.requires_grad
        save_peft(net, folder / f"checkpoint-{step}")
    return Trajectory.open(folder, base=folder.with_suffix(".safetensors"))


@pytest.mark.parametrize("method", [*METHODS_THERE, "models", "peft"])
def test_through_the_same_code_on_the_processor_the_numbers_are_the_same(runs, tmp_path, method) -> None:
    foreign = {"models": whole_models, "peft": adapters}
    run = foreign[method](tmp_path / "run") if method in foreign else Trajectory.open(runs / method)
    for module in run.modules:
        there = device.OnDevice(run, torch.device("cpu"), module, run.steps)
        assert torch.equal(there.base(module), run.base(module))
        for step in run.steps:
            for dtype in (None, torch.float64):
                assert torch.equal(there.weight(module, step, dtype), run.weight(module, step, dtype))
            assert torch.equal(there.update(module, step), run.update(module, step))
            assert (there.factors(module, step) is None) == (run.factors(module, step) is None)
            have, want = (each.source.scaled_factors(module, step) for each in (there, run))
            assert (have is None) == (want is None)
            if have is not None:
                assert torch.equal(have.U, want.U)
                assert torch.equal(have.V, want.V)


def test_the_next_step_is_read_ahead(runs, monkeypatch) -> None:
    read = []
    state = RecordedSource.state

    def noted(self, module, step):
        read.append(step)
        return state(self, module, step)

    monkeypatch.setattr(RecordedSource, "state", noted)
    run = Trajectory.open(runs / "ft")
    there = device.OnDevice(run, torch.device("cpu"), run.modules[0], [0, None, 1, 2])
    there.weight(run.modules[0], 0)
    there._ahead[1].result()
    assert read == [0, 1]
    there.weight(run.modules[0], 0)
    assert 2 not in read
    there.weight(run.modules[0], 1)
    there.update(run.modules[0], 2)
    assert sorted(read) == [0, 1, 2]


def test_the_processor_is_todays_path(runs) -> None:
    run = Trajectory.open(runs / "bora")
    assert device.placed(run, "cpu") is run
    pd.testing.assert_frame_equal(changes_table([run], work=Work(device="cpu")), changes_table([run]), check_exact=True)
    assert Work(device="cpu:0") == Work()


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "nonsense", "", "cpu:1", None, 3, "cuda:x"])
def test_a_device_that_is_not_here_is_said_with_those_that_are(monkeypatch, name) -> None:
    monkeypatch.setattr(device, "devices", lambda: ["cpu"])
    with pytest.raises(OptionError, match=r"device is .*; choose cpu, the only device that torch finds here"):
        Work(device=name)


def test_a_number_that_is_too_high_is_said(monkeypatch) -> None:
    monkeypatch.setattr(device, "devices", lambda: ["cpu", "cuda:0", "cuda:1"])
    assert Work(device="cuda:1").device == "cuda:1"
    with pytest.raises(OptionError, match="device is 'cuda:2'; choose one of cpu, cuda:0, cuda:1"):
        Work(device="cuda:2")


def test_without_float64_the_processor_measures_and_it_is_said(monkeypatch) -> None:
    monkeypatch.setattr(device, "devices", lambda: ["cpu", "mps:0"])
    with pytest.warns(DeltawWarning, match="no float64; the processor measures instead"):
        assert Work(device="mps").device == "cpu"


def test_what_a_device_has_no_memory_for_is_named(runs, monkeypatch) -> None:
    def full(stop):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(regions, "_of_step", full)
    with pytest.raises(OptionError, match=r"query of shape \(9, 12\): the device has not the memory.*--device cpu"):
        regions.regions_table([Trajectory.open(runs / "ft")])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a device here")
@pytest.mark.parametrize("verb", ["changes", "rank"])
def test_the_command_line_says_in_one_line_that_there_is_none(runs, capsys, verb) -> None:
    assert main([verb, str(runs / "lora"), "--device", "cuda"]) == 2
    assert "device is 'cuda'; choose cpu, the only device" in capsys.readouterr().err

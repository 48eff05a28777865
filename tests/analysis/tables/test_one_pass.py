"""One pass: every pair of steps that is asked for, each checkpoint read once, its header parsed once."""

from collections import Counter

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import create, inject
from deltaw.adapters.methods.registry import options_of
from deltaw.analysis import Trajectory
from deltaw.analysis.records.storage import safetensors_file
from deltaw.trainers import Recorder

KINDS = ("consecutive", "initial", "base")
STEPS = 6


def recorded(folder, method: str, steps: int = STEPS, size: float = 1e-3) -> Trajectory:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 12))
    inject(net, create(method, **({"rank": 3} if "rank" in options_of(method) else {})), targets=["*"])
    with Recorder(net, folder) as recorder:
        for step in range(steps):
            recorder.step(step)
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter += size * torch.randn(parameter.shape) * parameter.requires_grad
    return Trajectory.open(folder)


@pytest.fixture
def full(tmp_path) -> Trajectory:
    """Whole models of a trainer, and their base."""
    draw = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        folder = tmp_path / "run" / f"checkpoint-{step + 1}"
        folder.mkdir(parents=True)
        save_file(
            {f"layers.{i}.query.weight": torch.randn(8, 6, generator=draw) for i in (0, 1)},
            folder / "model.safetensors",
        )
    base = {f"layers.{i}.query.weight": torch.randn(8, 6, generator=draw) for i in (0, 1)}
    return Trajectory.open(tmp_path / "run", base=base)


@pytest.mark.parametrize("method", ["ft", "lora", "bora"])
def test_several_kinds_are_those_alone_below_one_another(method, tmp_path) -> None:
    run = recorded(tmp_path / "run", method)
    frame = run.changes(KINDS)
    assert list(frame.columns[:7]) == ["run", "method", "module", "layer", "kind", "pairs", "axis"]
    for kind in KINDS:
        alone = run.changes(kind)
        assert "pairs" not in alone.columns
        part = frame[frame["pairs"] == kind].drop(columns="pairs").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone, check_exact=True)


def test_pairs_are_in_the_order_they_are_given_in(tmp_path) -> None:
    pairs = [(3, 5), (None, 1), (5, 3), (0, 1), (3, 5)]
    frame = recorded(tmp_path / "run", "lora").changes(pairs, axes="row", modules=["0"])
    assert [(None if pd.isna(a) else a, b) for a, b in zip(frame["step_from"], frame["step_to"], strict=True)] == pairs


def test_every_matrix_is_read_once(full, monkeypatch) -> None:
    read: Counter = Counter()
    weight, base = full.source.weight, full.source.base

    def counted_weight(module, step, dtype=None):
        read[module, step] += 1
        return weight(module, step, dtype)

    def counted_base(module):
        read[module, None] += 1
        return base(module)

    monkeypatch.setattr(full.source, "weight", counted_weight)
    monkeypatch.setattr(full.source, "base", counted_base)
    full.changes(KINDS)
    assert read == {(module, step): 1 for module in full.modules for step in (None, *full.steps)}


def test_headers_are_read_once_and_parsed_once(full, monkeypatch) -> None:
    read: Counter = Counter()
    parsed: Counter = Counter()
    text, parse = safetensors_file.header_text, safetensors_file.parsed

    def counted_text(storage, name, size):
        read[storage.file(name)] += 1
        return text(storage, name, size)

    def counted_parse(data, where, **options):
        parsed[bytes(data)] += 1
        return parse(data, where, **options)

    monkeypatch.setattr(safetensors_file, "header_text", counted_text)
    monkeypatch.setattr(safetensors_file, "parsed", counted_parse)
    safetensors_file._parsed.cache_clear()
    full.changes(("consecutive", "base"))
    full.changes("initial")
    assert set(read.values()) == {1}
    assert list(parsed.values()) == [1]

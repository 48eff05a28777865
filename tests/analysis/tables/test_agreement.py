"""Runs against runs: every number against its measure, over the whole model against one long vector."""

import json
import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import OptionError, ShapeError, create, inject
from deltaw.analysis import (
    Trajectory,
    agreement_matrix,
    mask_agreement,
    model_agreement,
    open_runs,
    overlap_energy,
    sign_agreement,
    update_agreement,
    update_cosine,
    visible_changes,
)
from deltaw.analysis.tables.work import Work
from deltaw.cli import main
from deltaw.trainers import Recorder

NAMES = ["layers.0.query", "layers.1.query"]


def record(folder, method, *, seed=0, shapes=((12, 9), (10, 12)), steps=3):
    torch.manual_seed(7)
    layers = [nn.ModuleDict({"query": nn.Linear(width, out)}) for out, width in shapes]
    model = nn.ModuleDict({"layers": nn.ModuleList(layers)})
    inject(model, create(method, **({} if method == "ft" else {"rank": 3})), ["*.query"], seed=seed)
    torch.manual_seed(seed)
    with Recorder(model, folder, method=method) as recorder:
        for step in range(steps):
            recorder.step(step)
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.01 * torch.randn_like(p) * p.requires_grad
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agreement")
    record(folder / "lora", "lora")
    record(folder / "other", "lora", seed=1, shapes=((12, 9), (10, 12), (4, 5)))
    record(folder / "bora", "bora", seed=2)
    record(folder / "ft", "ft", seed=3, steps=4)
    return open_runs([folder / name for name in ("lora", "other", "bora", "ft")])


def test_every_number_is_that_of_its_measure(runs):
    frame = update_agreement(runs, k=2)
    assert len(frame) == 2 * 6
    assert frame.attrs["not_common"] == ["layers.2.query"]
    by_name = {run.name: run for run in runs}
    for row in frame.itertuples():
        one, two = by_name[row.run_first], by_name[row.run_second]
        at = row.step_first, row.step_second
        assert at == (one.steps[-1], two.steps[-1])
        a, b = (run.update(row.module, step) for run, step in zip((one, two), at, strict=True))
        assert (row.norm_first, row.norm_second) == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-9)
        assert row.cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), abs=1e-12)
        assert row.cosine_chance == 1 / math.sqrt(row.entries) == 1 / math.sqrt(a.numel())
        assert row.sign_agreement == pytest.approx(sign_agreement(a, b))
        assert row.sign_expected == pytest.approx(0.5, abs=0.2)
        assert row.directions == 2
        for end, (of, update) in (("", (a, b)), ("_reverse", (b, a))):
            found = overlap_energy(of, update, k=2)
            assert getattr(row, f"energy_left{end}") == pytest.approx(found.left, abs=1e-9)
            assert getattr(row, f"energy_right{end}") == pytest.approx(found.right, abs=1e-9)
        assert row.energy_right_expected == 2 / a.shape[1]
        masks = [
            visible_changes(run.base(row.module), run.weight(row.module, step, torch.float64))
            for run, step in zip((one, two), at, strict=True)
        ]
        found = mask_agreement(*masks)
        assert (row.jaccard, row.jaccard_expected) == (found.jaccard, found.expected)
        assert (row.visible_first, row.visible_second) == (found.first, found.second)


def test_over_the_whole_model_it_is_one_long_vector(runs):
    whole = model_agreement(update_agreement(runs, k=0))
    by_name = {run.name: run for run in runs}
    assert list(zip(whole["run_first"], whole["run_second"], strict=True)) == list(combinations(by_name, 2))
    for row in whole.itertuples():
        long = [
            torch.cat([run.update(name, run.steps[-1]).ravel() for name in NAMES])
            for run in (by_name[row.run_first], by_name[row.run_second])
        ]
        assert row.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(*long, dim=0)), abs=1e-12)
        assert (row.norm_first, row.norm_second) == pytest.approx([float(one.norm()) for one in long])
        assert row.sign_agreement == pytest.approx(float((long[0].sign() == long[1].sign()).double().mean()))
        masks = [
            torch.cat(
                [
                    visible_changes(run.base(name), run.weight(name, run.steps[-1], torch.float64)).ravel()
                    for name in NAMES
                ]
            )
            for run in (by_name[row.run_first], by_name[row.run_second])
        ]
        assert row.jaccard == pytest.approx(float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()))
        assert (row.modules, row.entries) == (2, 12 * 9 + 10 * 12)
    assert len(model_agreement(update_agreement(runs), by=["layer"])) == 12


def test_the_chance_of_the_whole_model_is_its_spread():
    shapes, weights, generator = [(20, 30), (40, 10)], [1.0, 3.0], torch.Generator().manual_seed(0)
    found, rows = [], []
    for pair in range(300):
        for module, (shape, weight) in enumerate(zip(shapes, weights, strict=True)):
            a, b = (weight * torch.randn(shape, generator=generator) for _ in range(2))
            named = {"run_first": f"a{pair}", "run_second": "b", "step_first": 0, "step_second": 0, "module": module}
            named |= {"norm_first": float(a.norm()), "norm_second": float(b.norm()), "cosine": update_cosine(a, b)}
            rows.append(named | {"entries": a.numel(), "cosine_chance": a.numel() ** -0.5})
    found = model_agreement(pd.DataFrame(rows))
    assert np.std(found["cosine"]) == pytest.approx(found["cosine_chance"].mean(), rel=0.1)


def test_the_square_of_runs(runs):
    frame = update_agreement(runs, k=2)
    whole = model_agreement(frame)
    square = agreement_matrix(frame)
    assert list(square.index) == list(square.columns) == ["lora", "other", "bora", "ft"]
    assert (np.diag(square) == 1).all()
    assert square.equals(square.T)
    row = whole.iloc[1]
    assert square.loc[row["run_first"], row["run_second"]] == row["cosine"]
    energy = agreement_matrix(whole, "energy_left")
    assert energy.loc["lora", "ft"] == whole.loc[2, "energy_left"]
    assert energy.loc["ft", "lora"] == whole.loc[2, "energy_left_reverse"]
    assert energy.loc["lora", "ft"] != energy.loc["ft", "lora"]
    with pytest.raises(OptionError, match="choose one of cosine"):
        agreement_matrix(frame, "rank")
    with pytest.raises(OptionError, match="several rows of two runs"):
        agreement_matrix(update_agreement(runs, steps=None))


def test_steps_that_all_have_and_other_processes(runs):
    frame = update_agreement(runs, steps=None)
    assert sorted(set(frame["step_first"])) == sorted(set(frame["step_second"])) == [0, 1, 2]
    start = frame[(frame["step_first"] == 0) & (frame["run_first"] == "lora") & (frame["run_second"] == "other")]
    assert start["cosine"].isna().all()
    assert (start["norm_first"] == 0).all()
    assert (start["jaccard"].isna() & (start["visible_first"] == 0)).all()
    assert math.isnan(model_agreement(start)["cosine"][0])
    pd.testing.assert_frame_equal(update_agreement(runs, steps=None, work=Work(jobs=2)), frame)
    assert set(update_agreement(runs, steps=[1], k=0, signs=False, visible=None)["step_second"]) == {1}


def test_an_update_that_needs_a_base_that_is_not_known(runs, tmp_path):
    save_file({f"{name}.weight": runs[0].weight(name, 2) for name in NAMES}, tmp_path / "model.safetensors")
    frame = update_agreement([*runs[:2], Trajectory.open(tmp_path / "model.safetensors")])
    known = frame[(frame["run_first"] == "lora") & (frame["run_second"] == "other")]
    assert known["cosine"].notna().all()
    assert frame.drop(known.index)[["cosine", "jaccard", "energy_left"]].isna().all(axis=None)
    whole = model_agreement(frame)
    assert whole["modules"].tolist() == [2, 0, 0]
    assert whole["cosine"].isna().tolist() == [False, True, True]


def test_bad_calls(runs, tmp_path):
    with pytest.raises(OptionError, match="pass two or more"):
        update_agreement(runs[:1])
    with pytest.raises(OptionError, match="two runs have the name 'lora'"):
        update_agreement([runs[0], Trajectory.open(runs[0].path)])
    with pytest.raises(OptionError, match="visible is 'int8'"):
        update_agreement(runs, visible="int8")
    with pytest.raises(ShapeError, match=r"layers\.0\.query"):
        update_agreement([runs[0], Trajectory.open(record(tmp_path / "small", "lora", shapes=((8, 9), (10, 12))))])
    with pytest.raises(OptionError, match="no module in common"):
        update_agreement([runs[0], _alien(tmp_path)])


def _alien(tmp_path):
    save_file({"h.weight": torch.ones(3, 4)}, tmp_path / "alien.safetensors")
    return Trajectory.open(tmp_path / "alien.safetensors")


def test_the_command_prints_squares_of_several_runs(runs, tmp_path, capsys):
    paths, table = [str(run.path) for run in runs], tmp_path / "agreement.csv"
    assert main(["compare", *paths, "-o", str(table), "--explain"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 40
    assert "2 matrices at their last steps, 2 to 3; below the diagonal measured" in out
    assert "not in all runs, and left out: layers.2.query" in out
    assert "same sign" in out
    square = agreement_matrix(update_agreement(runs))
    assert f"{square.loc['bora', 'lora']:.2g}" in out
    assert len(pd.read_csv(table)) == 12
    assert main(["compare", *paths, "--step", "1", "--json"]) == 0
    assert {row["step_second"] for row in json.loads(capsys.readouterr().out)} == {1}
    assert main(["compare", *paths, "--step", "1", "--step", "2"]) == 2
    assert "name one step of all" in capsys.readouterr().err
    assert main(["compare", paths[0]]) == 2
    assert "name two or more" in capsys.readouterr().err
    assert main(["compare", *paths[:2]]) == 0
    assert "all updates as one vector: cosine" in capsys.readouterr().out

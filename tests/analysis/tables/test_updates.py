"""The noise floor of tables: ‖W₀‖₂ once a module, the same whatever steps are asked for, and what ``spectrum`` says."""

import pandas as pd
import pytest
import torch
from torch import nn

from deltaw.adapters import create, inject
from deltaw.analysis import Trajectory, spectrum
from deltaw.analysis.measures import norms
from deltaw.analysis.tables.singular_values import singular_values
from deltaw.trainers import Recorder


@pytest.fixture(params=["bora", "ft"])
def run(request, tmp_path):
    """Three steps: ΔW is zero, small, and as large as W₀."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"query": nn.Linear(150, 140, bias=False)})
    inject(model, create(request.param, **({} if request.param == "ft" else {"rank": 4})), targets=["query"])
    with Recorder(model, tmp_path / "run", modules=["query"]) as recorder:
        for step, moved in enumerate((0.0, 1e-5, 0.1)):
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter), alpha=moved)
            recorder.step(step)
    return Trajectory.open(tmp_path / "run")


def test_the_floor_is_the_definitions(run):
    frame = run.spectra()
    weights = {step: run.weight("query", step, torch.float64) for step in run.steps}
    for row in frame.itertuples():
        floor = torch.finfo(torch.float32).eps * float(torch.linalg.matrix_norm(weights[row.step], 2))
        assert row.tolerance == pytest.approx(floor, rel=0.02)
        update = run.update("query", row.step)
        whole = spectrum(update, stored=torch.float32, weight=weights[row.step])
        assert row.rank == pytest.approx(whole.rank, abs=1)
        assert row.nuclear == pytest.approx(whole.nuclear, rel=1e-3)


def test_the_floor_does_not_depend_on_the_steps(run):
    whole = run.spectra()
    apart = pd.concat([run.spectra(steps=[step]) for step in (2, 0, 1)])
    apart = apart.sort_values("step").reset_index(drop=True)
    pd.testing.assert_frame_equal(apart, whole, check_exact=True)
    pd.testing.assert_frame_equal(run.spectra(steps=[2, 1, 0])[::-1].reset_index(drop=True), whole, check_exact=True)


def test_one_norm_serves_all_steps_that_are_near(run, monkeypatch):
    asked = []
    true = norms.spectral_norm
    monkeypatch.setattr(norms, "spectral_norm", lambda weight: asked.append(weight) or true(weight))
    run.spectra()
    assert len(asked) == 2  # W₀ for the first two, and the last step's own
    asked.clear()
    run.spectra(steps=[2], measures=["frobenius", "zero_rows"])  # no rounding can weigh there
    assert asked == []


def test_approximate_adds_what_is_left_out(run):
    exact, near = run.spectra(), run.spectra(approximate=0.05)
    assert near.columns.tolist() == [*exact.columns, "error"]
    assert "error" not in exact.columns
    assert bool((near.error <= 0.05).all())
    for name in ("frobenius", "stable_rank"):
        assert near[name].tolist() == pytest.approx(exact[name].tolist(), rel=1e-3)


def test_the_largest_alone_are_the_first_of_all(run, monkeypatch):
    monkeypatch.setattr("deltaw.analysis.measures.leading.LARGE", 100)
    monkeypatch.setattr("deltaw.analysis.measures.leading._BASIS", 1)
    few, whole = singular_values([run], top=3), singular_values([run])
    whole = whole[whole["index"] <= 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(few, whole, rtol=2e-6)

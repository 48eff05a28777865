"""The growth of singular values: on an update whose spectrum is set, against σ itself, and where there is none."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from deltaw.analysis import Trajectory, singular_value_growth, spectral_entropy, spectral_growth, spectrum
from deltaw.analysis.tables.singular_values import singular_values
from deltaw.analysis.tables.work import Work

from .measured_runs import recorded


@pytest.fixture
def straight(tmp_path):
    """σ_i(t) = i·0.1 + 0.02·t of W₀ = 0: all grow by the same amount a step."""
    draw = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 4, generator=draw, dtype=torch.float64)).Q for n in (9, 7))
    for step in (0, 10, 30):
        sigma = (torch.arange(4.0).double() + 1) * 0.1 + 0.02 * step if step else torch.zeros(4).double()
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file({"0.weight": (u * sigma) @ v.T}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    return Trajectory.open(tmp_path, base={"0.weight": torch.zeros(9, 7).double()})


def test_equal_amounts_are_told_from_equal_shares(straight):
    frame = singular_value_growth([straight])
    last = frame[(frame["step"] == 30) & (frame["index"] <= 4)]
    assert last["step_from"].unique().tolist() == [10]
    np.testing.assert_allclose(last["growth"], 0.02, rtol=1e-9)
    sigma = np.array([0.6, 0.5, 0.4, 0.3])
    np.testing.assert_allclose(last["log_growth"], np.log((sigma + 0.4) / sigma) / 20, rtol=1e-9)
    first = frame[(frame["step"] == 10) & (frame["index"] <= 4)]
    np.testing.assert_allclose(first["growth"], sigma / 10, rtol=1e-9)
    assert first["log_growth"].isna().all()
    noise = frame[frame["index"] > 4]
    assert noise["log_growth"].isna().all()
    assert (noise["growth"].abs() <= noise["uncertain"]).all()
    whole = spectral_growth([straight]).set_index("step")
    assert whole["rank"].tolist() == [0, 4, 4]
    assert whole.loc[30, "unevenness"] == pytest.approx(0, abs=1e-9)
    assert whole.loc[10, "unevenness"] == pytest.approx(sigma.std() / sigma.mean())
    assert whole.loc[30, "log_unevenness"] > 0.1
    assert whole.loc[0, ["entropy", "entropy_rate", "growth"]].isna().all()


def test_entropies_and_rates_are_those_of_the_spectrum(straight):
    whole = spectral_growth([straight]).set_index("step")
    found = {step: spectrum(straight.update("0", step)).signal for step in (10, 30)}
    for q, name in ((1, "entropy"), (2, "energy_entropy")):
        want = {step: spectral_entropy(signal, power=q, size=7) for step, signal in found.items()}
        assert whole.loc[30, name] == pytest.approx(want[30], rel=1e-9)
        assert whole.loc[30, f"{name}_rate"] == pytest.approx((want[30] - want[10]) / 20, rel=1e-6)


def test_of_factors_and_in_other_processes(tmp_path):
    run = Trajectory.open(recorded(tmp_path / "lora", "lora", steps=4))
    frame = singular_value_growth([run])
    values = singular_values([run]).set_index(["module", "step", "index"])["singular_value"]
    for row in frame.itertuples():
        before, after = values[row.module, row.step_from, row.index], values[row.module, row.step, row.index]
        assert row.growth == after - before
    assert frame["index"].max() == 4
    pd.testing.assert_frame_equal(singular_value_growth([run], work=Work(jobs=2)), frame)
    assert singular_value_growth([run], top=1)["index"].unique().tolist() == [1]
    assert singular_value_growth([run], steps=[2]).empty
    assert spectral_growth([run])["entropy"].max() <= np.log(4) / np.log(16)

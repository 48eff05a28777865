"""How ΔM and ΔD are spread over rows and columns, held to every single vector."""

import numpy as np
import pytest

from deltaw.adapters import OptionError
from deltaw.analysis import Trajectory, vector_changes
from deltaw.analysis.tables.distributions import distributions
from deltaw.analysis.tables.work import Work


@pytest.fixture
def run(tmp_path):
    import torch
    from torch import nn

    from deltaw.adapters import LoRA, inject
    from deltaw.trainers import Recorder

    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(9, 7), "value": nn.Linear(9, 7)}), LoRA(rank=2), targets=["*"])
    with Recorder(model, tmp_path / "run") as recorder:
        for step in range(3):
            recorder.step(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.01 * torch.randn_like(parameter) * parameter.requires_grad
    return Trajectory.open(tmp_path / "run")


@pytest.mark.parametrize("jobs", [1, 2])
def test_counts_ends_and_the_most_moved(run, jobs):
    vectors = vector_changes([run], "base", quantiles=None)
    found = list(distributions(run, "base", bins=4, most=3, work=Work(jobs=jobs)))
    assert [(one.module, one.step) for one in found] == [
        (name, step) for name in ("query", "value") for step in range(3)
    ]
    for one in found:
        assert [(row["axis"], row["measure"]) for row in one.rows] == [(a, m) for a in ("row", "column") for m in "md"]
        for row in one.rows:
            here = vectors[
                (vectors.module == one.module) & (vectors.step_to == one.step) & (vectors.axis == row["axis"])
            ]
            values = here[f"delta_{row['measure']}"].to_numpy()
            counts, edges = np.histogram(values, 4)
            np.testing.assert_array_equal(row["counts"], counts)
            assert (row["low"], row["high"]) == (edges[0], edges[-1])
            np.testing.assert_array_equal(row["value"], np.sort(values)[::-1][:3])
            np.testing.assert_array_equal(values[row["index"]], row["value"])


def test_chosen_modules_and_wrong_numbers(run):
    assert {one.module for one in distributions(run, [(0, 2)], ["value"])} == {"value"}
    with pytest.raises(OptionError, match="bins"):
        distributions(run, "base", bins=0)

"""Where the work of a table is done: what cannot be is said, and the options of the public functions are one."""

import inspect

import pandas as pd
import pytest

import deltaw
from deltaw import analysis
from deltaw.adapters.errors import OptionError
from deltaw.analysis import Trajectory
from deltaw.analysis.tables.work import Work, chosen_work

from .measured_runs import recorded


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"jobs": 0}, "jobs must be a whole number of at least 1, not 0"),
        ({"engine": "spark"}, "engine is 'spark'; choose 'dask', or None"),
        ({"address": "tcp://node1:8786"}, "no engine is named; add engine='dask'"),
        ({"engine": "dask", "address": ""}, "address is ''; give that of the engine's scheduler"),
        ({"engine": "dask", "address": "tcp://a:1", "jobs": 2}, "jobs is 2, and the engine at tcp://a:1 has processes"),
    ],
    ids=["jobs", "engine", "alone", "empty", "both"],
)
def test_what_cannot_be_is_said(given, said):
    with pytest.raises(OptionError, match=said):
        chosen_work(**given)


def test_the_public_defaults():
    assert chosen_work() == Work(device="cpu", jobs=1, engine=None, address=None, cache=True)


TWO_RUNS = ("compare", "interpolation_table", "subspace_angles", "subspace_overlap")
SEVERAL = (
    "amplification_table",
    "block_table",
    "expert_changes",
    "geometry_table",
    "head_changes",
    "intruder_table",
    "new_tokens",
    "similarity_table",
    "singular_value_growth",
    "singular_values",
    "spectral_growth",
    "token_changes",
    "update_agreement",
    "vector_changes",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Trajectory]:
    folder = tmp_path_factory.mktemp("runs")
    return [Trajectory.open(recorded(folder / name, name, steps=3)) for name in ("lora", "dora")]


def test_no_public_table_is_missing_here():
    """What returns a table of runs, and is not made of another table alone."""
    of_tables = {"agreement_matrix", "by_block", "correlation", "model_agreement"}
    of_tables |= {"resize"}  # what was written, adapters of small factors
    with_options = {"table", "check_claims"}  # device, jobs, … are in their signature
    found = set()
    for name in analysis.__all__:
        thing = getattr(analysis, name)
        if inspect.isfunction(thing) and "DataFrame" in str(inspect.signature(thing).return_annotation):
            found.add(name)
    assert found - of_tables - with_options == {*TWO_RUNS, *SEVERAL} - {"compare"}


@pytest.mark.parametrize("name", [*TWO_RUNS, *SEVERAL])
def test_every_public_table_takes_a_device(runs, name):
    function = deltaw.compare if name == "compare" else getattr(analysis, name)
    given = runs if name in TWO_RUNS else [runs]
    with pytest.raises(OptionError, match=r"device is 'nowhere'; choose cpu"):
        function(*given, device="nowhere")
    with pytest.raises(OptionError, match=r"no option 'devise'; of how it is measured there are device, jobs, engine"):
        function(*given, devise="cpu")
    with pytest.raises(OptionError, match="work and jobs are given; leave one of them out"):
        function(*given, work=Work(), jobs=2)


@pytest.mark.parametrize("name", ["compare", "interpolation_table", "geometry_table"])
def test_jobs_by_keyword_change_no_bit(runs, name):
    function = deltaw.compare if name == "compare" else getattr(analysis, name)
    given = runs if name in TWO_RUNS else [runs]
    pd.testing.assert_frame_equal(function(*given, jobs=2), function(*given), check_exact=True)

"""Where the work of a table is done: what cannot be is said, and the options of the public functions are one."""

import pytest

from deltaw.adapters.errors import OptionError
from deltaw.analysis.tables.work import Work, chosen_work


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

import numpy as np
import pytest
import torch

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_whole_numbers_of_any_kind_are_taken(value):
    assert whole_number("k", value, 1) == 3
    assert type(whole_number("k", value, 1)) is int


@pytest.mark.parametrize(
    "value", [True, np.True_, 3.0, "3", None, 0, np.int64(0), torch.tensor(True), torch.tensor([1, 2])]
)
def test_anything_else_is_refused_by_name(value):
    with pytest.raises(OptionError, match=r"^k must be None or a whole number of at least 1, not"):
        whole_number("k", value, 1, also="None")

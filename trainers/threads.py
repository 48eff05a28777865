"""How many threads a run is trained on: chosen by the model's size alone, so that results are the same anywhere."""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import nn

# Parameters. Up to here a second thread costs more than it brings: the built-in models have .7 and 1.3 million, and one
# waiting for the other at every small product slows a run down several times on a machine that does something else.
SMALL = 8_000_000
CHOSEN_BY_USER = "OMP_NUM_THREADS"


def suitable_threads(model: nn.Module) -> int:
    """Return one for a small model, else as many as torch has; those that OMP_NUM_THREADS names stay.

    It must not depend on how many runs are trained side by side: the last digits of a sum depend on the threads.

    Example:
        >>> import os
        >>> chosen = os.environ.pop("OMP_NUM_THREADS", None)
        >>> suitable_threads(nn.Linear(8, 8))
        1
        >>> if chosen: os.environ["OMP_NUM_THREADS"] = chosen
    """
    if CHOSEN_BY_USER in os.environ or sum(p.numel() for p in model.parameters()) > SMALL:
        return torch.get_num_threads()
    return 1


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Let torch have so many threads in a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

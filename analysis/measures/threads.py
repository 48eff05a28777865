"""One thread for what would round differently on several."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run LAPACK's decompositions and torch's long sums so that their last digits do not depend on the threads.

    Products of matrices need it not: each of their entries is summed by one thread in one order.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

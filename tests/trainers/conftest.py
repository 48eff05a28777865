"""Two processes for the tests of what several make together."""

import multiprocessing
import traceback

import pytest
import torch
import torch.distributed as dist


def _run(rank, work, path, answers):
    """One of the two processes."""
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
        answers.put((rank, work(rank, path), None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))


@pytest.fixture
def in_two():
    """``in_two(work, path)`` runs ``work(rank, path)`` in two processes, and returns what the two return."""
    return _in_two


def _in_two(work, path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_run, args=(rank, work, path, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict.fromkeys(range(2))
    try:
        for _ in processes:
            rank, value, error = answers.get(timeout=120)
            assert error is None, f"rank {rank}: {error}"
            found[rank] = value
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return found[0], found[1]

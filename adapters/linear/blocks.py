"""Large frozen matrices a block of rows at a time, and products with thin ones; where it pays, by compiled loops."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

BLOCK_ENTRIES = 1 << 18  # of a matrix at a time: a block and its temporaries stay in the processor's cache
FEWEST_BLOCKS = 4
BLOCK_ENTRIES_ELSEWHERE = 1 << 23  # on other devices, where the number of kernels costs
FEW_COLUMNS = 16  # below which a matrix product is faster with them as rows
LOOP_THREADS = 3  # up to which one thread in a compiled loop is faster than all of them in torch's operations


def row_blocks(matrix: Tensor, times: int = 1, fewest: int = FEWEST_BLOCKS) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows, of about equal length, and the views of the matrix that they cut; never none.

    At least four of a weight, whatever its size, so that what is made of a block is never nearly a dense matrix.

    Arguments:
        matrix: (rows, columns).
        times: How many times the usual size a block may be.
        fewest: The least number of blocks.
    """
    entries = times * (BLOCK_ENTRIES if matrix.device.type == "cpu" else BLOCK_ENTRIES_ELSEWHERE)
    rows, columns = matrix.shape
    count = max(fewest, math.ceil(rows / max(1, entries // max(1, columns))))
    step = max(1, math.ceil(rows / count))
    for start in range(0, max(1, rows), step):
        yield slice(start, start + step), matrix[start : start + step]


def product_blocks(weight: Tensor, A: Tensor, B: Tensor, scaling: float) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows and those rows of V = W₀ + s·B A, in the dtype of A, without a graph.

    The next block overwrites the last, and the caller may do so as well.
    """
    B = scaling * B
    V = A.new_empty(0)
    for rows, block in row_blocks(weight):
        if V.shape != block.shape:
            V = A.new_empty(block.shape)
        yield rows, torch.mm(B[rows], A, out=V).add_(block)


def thin_product(x: Tensor, thin: Tensor) -> Tensor:
    """Return x (n, m) times a thin matrix (m, r): (n, r), transposed in memory where that is several times as fast."""
    if thin.shape[1] < FEW_COLUMNS and x.device.type == "cpu":
        return (thin.T @ x.T).T
    return x @ thin


def frozen_product(weight: Tensor, x: Tensor) -> Tensor:
    """Return W X (out, r) in the dtype of X (in, r), differentiable in X; W (out, in) may be of lower precision."""
    if weight.dtype == x.dtype:
        return weight @ x
    result: Tensor = _FrozenProduct.apply(weight, x)  # type: ignore[no-untyped-call]
    return result


class _FrozenProduct(torch.autograd.Function):
    """W X in the dtype of X, for a frozen W of another dtype, widened a block of rows at a time."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.cat([block.to(x.dtype) @ x for _, block in row_blocks(weight)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        parts = (block.to(gradient.dtype).T @ gradient[rows] for rows, block in row_blocks(weight))
        return None, sum(parts, start=gradient.new_zeros(()))


def scaled_and_dots(g: Tensor, z: Tensor, scale: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Return g_tj scale_j (tokens, features), written over g or not, and Σ_t g_tj z_tj (features,)."""
    if loop_reads(g, z, scale):
        from deltaw.adapters.compiled import norms as kernels

        out = None if in_place else torch.empty_like(g)
        dots = kernels.scaled_and_dots(g, z, scale, out)
        return (g if out is None else out), dots
    if torch.compiler.is_compiling():  # blocks would tie the compiled code to one number of tokens
        dots = (g * z).sum(0)
    else:
        dots = torch.stack([(z[rows] * block).sum(0) for rows, block in row_blocks(g, fewest=1)]).sum(0)
    return (g.mul_(scale) if in_place else g * scale), dots


def loop_reads(*tensors: Tensor) -> bool:
    """Whether the compiled loops can read the tensors, and are faster than torch's operations with all its threads."""
    dtype = tensors[0].dtype
    if torch.compiler.is_compiling() or dtype not in (torch.float32, torch.float64):
        return False
    for tensor in tensors:
        if type(tensor) not in (Tensor, nn.Parameter):  # a DTensor, or what only stands for one
            return False
        if not tensor.is_cpu or tensor.dtype != dtype or not tensor.is_contiguous():
            return False
    return torch.get_num_threads() <= LOOP_THREADS or _loops_on_all_threads()


def _loops_on_all_threads() -> bool:
    from deltaw.adapters.compiled import loops

    return loops.on_torch_threads()

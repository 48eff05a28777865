"""The norms of the rows and columns of W₀ + s·B A, without a dense B A.

Held constant, as the papers do in the backward pass, they are read off V = W₀ + s·B A, made a few rows at a time that
never leave the cache, by a compiled loop (``deltaw.adapters.compiled.norms``) or by torch. To be differentiated, they
come from small products,

    ‖w_i + s·b_i A‖² = ‖w_i‖² + 2s ⟨w_i, b_i A⟩ + s² b_i (A Aᵀ) b_iᵀ        for the rows w_i of W₀,

with ⟨w_i, b_i A⟩ = (W₀ Aᵀ)_i · b_i.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from deltaw.adapters.linear.blocks import frozen_product, loop_reads, product_blocks, row_blocks

Axis = Literal["row", "column"]


def norms(weight: Tensor, A: Tensor, B: Tensor, scaling: float, axis: Axis, constant: bool) -> Tensor:
    """Return ‖W₀ + s·B A‖ of the rows (out,) or the columns (in,): a constant, or with the graph of the full gradient.

    Arguments:
        weight, A, B, scaling: See ``row_norms``.
        axis: Along which the norms stand.
        constant: Whether the backward pass takes them for constants (DoRA, §4.3).
    """
    if constant or not torch.is_grad_enabled():
        return constant_norms(weight, A, B, scaling, axis)
    if axis == "row":
        return row_norms(weight, A, B, scaling)
    return row_norms(weight.T, B.T, A.T, scaling)


def constant_norms(weight: Tensor, A: Tensor, B: Tensor, scaling: float, axis: Axis) -> Tensor:
    """Return the norms of the rows (out,) or the columns (in,) of V = W₀ + s·B A, without a graph."""
    with torch.no_grad():
        if found := _loop_norms(weight, A, B, scaling, None, columns=axis == "column"):
            return found[0] if axis == "row" else found[1]
        blocks = product_blocks(weight, A, B, scaling)
        if axis == "row":
            return torch.cat([torch.linalg.vector_norm(V, dim=1) for _, V in blocks])
        squares = A.new_zeros(A.shape[1])
        for _, V in blocks:
            squares += V.square_().sum(0)
        return squares.sqrt()


def constant_norms_of_both(
    weight: Tensor, A: Tensor, B: Tensor, scaling: float, magnitude: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ‖V_i:‖ (out,) and ‖H_:j‖ (in,), H = diag(magnitude / ‖V_i:‖) V, V = W₀ + s·B A; no graph, one pass.

    A row of V is enough for its own factor, so each block serves both norms.
    """
    with torch.no_grad():
        if found := _loop_norms(weight, A, B, scaling, magnitude):
            return found
        row_norms, column_squares = [], A.new_zeros(A.shape[1])
        for rows, V in product_blocks(weight, A, B, scaling):
            norm = torch.linalg.vector_norm(V, dim=1)
            p = magnitude[rows] / norm.masked_fill(norm == 0, 1.0)  # a zero row adds nothing, whatever its factor
            column_squares.addmv_(V.square_().T, p.square())
            row_norms.append(norm)
        return torch.cat(row_norms), column_squares.sqrt()


def norms_of_steps(weight: Tensor, U: Sequence[Tensor], V: Sequence[Tensor], axis: Axis) -> Tensor:
    """Return the norms of the rows or the columns of W₀ + U V of several steps, (steps, vectors), without a graph.

    Where the compiled loop reads the tensors, W₀ is read once; a step's norms do not depend on the other steps.

    Arguments:
        weight: W₀, (out, in).
        U, V: (out, r) and (r, in) of every step.
        axis: Along which the norms stand.
    """
    if not _loop_takes_steps(weight, U, V):
        return torch.stack([constant_norms(weight, A, B, 1.0, axis) for B, A in zip(U, V, strict=True)])
    from deltaw.adapters.compiled import step_norms

    return (step_norms.row_norms if axis == "row" else step_norms.column_norms)(weight, U, V)


def norms_of_both_of_steps(
    weight: Tensor, U: Sequence[Tensor], V: Sequence[Tensor], magnitude: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ‖V_i:‖ (steps, out) and ‖H_:j‖ (steps, in) as `constant_norms_of_both`; else as `norms_of_steps`.

    Arguments:
        weight, U, V: As in `norms_of_steps`.
        magnitude: (steps, out).
    """
    if not _loop_takes_steps(weight, U, V):
        found = [constant_norms_of_both(weight, A, B, 1.0, m) for B, A, m in zip(U, V, magnitude, strict=True)]
        return torch.stack([rows for rows, _ in found]), torch.stack([columns for _, columns in found])
    from deltaw.adapters.compiled import step_norms

    return step_norms.norms_of_both(weight, U, V, magnitude)


def times(scaling: float, matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return s times some matrices, themselves where s = 1."""
    return [matrix if scaling == 1 else scaling * matrix for matrix in matrices]


def _loop_takes_steps(weight: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]) -> bool:
    if not loop_reads(weight) or any(t.dtype != torch.float64 or not t.is_cpu for t in (*U, *V)):
        return False
    from deltaw.adapters.compiled import norms as kernels

    return kernels.many_vectors()


def _loop_norms(
    weight: Tensor, A: Tensor, B: Tensor, scaling: float, magnitude: Tensor | None, columns: bool = True
) -> tuple[Tensor, Tensor] | None:
    """Return ‖V_i:‖ (out,) and ‖(diag(p) V)_:j‖ (in,), p = magnitude / ‖V_i:‖ or 1, without a graph.

    ``None`` where the compiled loop cannot read the tensors.
    """
    factors = () if magnitude is None else (magnitude,)
    wide = A if A.dtype == torch.float64 else weight  # the loop widens W₀'s entries, and does not narrow them
    if not (loop_reads(weight) and loop_reads(wide, A, B, *factors)):
        return None
    from deltaw.adapters.compiled import norms as kernels  # a quarter of a second, for those who need no norms

    return kernels.product_norms(weight, A, B, scaling, magnitude, columns)


def row_norms(weight: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Return ‖(W₀ + s·B A)_i‖ for every row i, (out,), differentiable in A and B.

    Arguments:
        weight: W₀, (out, in). Hand in W₀ᵀ, Bᵀ and Aᵀ for the norms of the columns.
        A, B: (r, in) and (out, r).
        scaling: s.
    """
    squares = row_squares(weight, A.dtype)
    cross = torch.linalg.vecdot(frozen_product(weight, A.T), B)
    own = torch.linalg.vecdot(B @ (A @ A.T), B)
    return safe_sqrt(squares + (2 * scaling) * cross + scaling**2 * own)


def weighted_column_norms(weight: Tensor, A: Tensor, B: Tensor, scaling: float, p: Tensor) -> Tensor:
    """Return ‖(diag(p) (W₀ + s·B A))_:j‖ for every column j, (in,), differentiable in A, B and p.

        column_j² = Σ_i p_i² w_ij² + 2s Σ_k ((p²∘B)ᵀ W₀)_kj A_kj + s² Σ_k (Bᵀ diag(p²) B A)_kj A_kj

    Arguments:
        weight: W₀, (out, in).
        A, B: (r, in) and (out, r).
        scaling: s.
        p: The factor of each row, (out,).
    """
    q = p.square()
    weighted = q[:, None] * B  # (out, r)
    squares = weighted_column_squares(weight, q)
    cross = (frozen_product(weight.T, weighted) * A.T).sum(1)
    own = ((B.T @ weighted) @ A * A).sum(0)
    return safe_sqrt(squares + (2 * scaling) * cross + scaling**2 * own)


def row_squares(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ‖w_i‖² for every row of W (out, in), in ``dtype``."""
    return torch.cat([torch.linalg.vecdot(b, b) for b in (block.to(dtype) for _, block in row_blocks(weight))])


def weighted_column_squares(weight: Tensor, q: Tensor) -> Tensor:
    """Return Σ_i q_i w_ij² for every column j of W (out, in), differentiable in q (out,)."""
    result: Tensor = _WeightedColumnSquares.apply(weight, q)  # type: ignore[no-untyped-call]
    return result


class _WeightedColumnSquares(torch.autograd.Function):
    """Σ_i q_i w_ij² for a frozen W, without W∘W: a block of rows at a time."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        result = q.new_zeros(weight.shape[1])
        for rows, block in row_blocks(weight):
            result += q[rows] @ block.to(q.dtype).square()
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        return None, torch.cat([b.to(gradient.dtype).square() @ gradient for _, b in row_blocks(weight)])


def starting_norms(base: Tensor, axis: Axis) -> Tensor:
    """Return ‖W₀‖ of the rows (out,) or the columns (in,), in its dtype, right to half a unit in the last place.

    The magnitudes of DoRA and BoRA start as these. A sum in float32 can be several units off, and as they multiply W₀,
    an update that is not there would then be seen at the start.
    """
    wide: Tensor = torch.linalg.vector_norm(base, dim=1 if axis == "row" else 0, dtype=torch.float64)
    return wide.to(base.dtype)


def ratio(magnitude: Tensor, norm: Tensor) -> Tensor:
    """Return magnitude / norm, and 1 where the norm is 0: a zero vector has no direction and stays as it is."""
    if _all_positive(norm):
        return magnitude / norm
    positive = norm > 0
    return torch.where(positive, magnitude / norm.where(positive, 1.0), 1.0)


def _all_positive(norm: Tensor) -> bool:
    """Whether it is known without waiting for a device that no norm is 0 or NaN."""
    known = norm.device.type == "cpu" and not torch.compiler.is_compiling() and type(norm) is Tensor
    return known and norm.numel() > 0 and float(norm.detach().min()) > 0


def safe_sqrt(squares: Tensor) -> Tensor:
    """Return √max(squares, 0), with a gradient of 0 instead of infinity at 0."""
    positive = squares > 0
    return torch.where(positive, squares.where(positive, 1.0).sqrt(), 0.0)

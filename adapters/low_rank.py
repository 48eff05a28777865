"""What the low-rank methods share: the linear map without W', and the norms of W₀ + s·B A without a dense B A.

LoRA, rsLoRA, DoRA and BoRA are all W' = diag(ρ) (W₀ + s·B A) diag(γ). So x W'ᵀ is: scale the input by γ, one linear
with W₀, the low-rank product, scale the output by ρ. Only the norms need W₀ again. Held constant, as the papers do in
the backward pass, they are read off V = W₀ + s·B A, made a block of rows at a time that never leaves the cache. To be
differentiated, they come from small products,

    ‖w_i + s·b_i A‖² = ‖w_i‖² + 2s ⟨w_i, b_i A⟩ + s² b_i (A Aᵀ) b_iᵀ        for the rows w_i of W₀,

with ⟨w_i, b_i A⟩ = (W₀ Aᵀ)_i · b_i. Nothing here ever holds a dense B A or W'.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ENTRIES = 1 << 17  # of a matrix at a time: a block and its temporaries stay in a core's cache
BLOCK_ENTRIES_ELSEWHERE = 1 << 23  # on other devices, where it is the count of kernels that costs


def kaiming_uniform(out_features: int, in_features: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return LoRA's initial A (out, in): uniform in ±1/√in, the ``kaiming_uniform_(a=√5)`` of ``nn.Linear``."""
    bound = 1 / math.sqrt(in_features)
    drawn = torch.rand(out_features, in_features, generator=generator, dtype=torch.float64)
    return ((2 * drawn - 1) * bound).to(like.dtype)


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    dropout: float = 0.0,
    rho: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:
    """Return x W'ᵀ + b for W' = diag(ρ) (W₀ + s·B A) diag(γ), (…, out).

    Arguments:
        x: (…, in).
        weight, bias: W₀ (out, in) and b (out,) or ``None``.
        A, B: (r, in) and (out, r).
        scaling: s.
        dropout: Probability of dropping an entry of γ∘x on the low-rank path; 0 outside training.
        rho, gamma: Factors of the outputs (out,) and of the inputs (in,); ``None`` for ones.
    """
    flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
    if gamma is not None:
        flat = scaled(flat, gamma)
    inner = bias if rho is None else None
    if dropout or torch.is_autocast_enabled(x.device.type) or not flat.dtype == weight.dtype == A.dtype == B.dtype:
        path = F.dropout(flat, dropout) if dropout else flat
        result = add_product(F.linear(flat, weight, inner), F.linear(path.to(A.dtype), A), B, scaling)
    else:
        result = _LowRankLinear.apply(flat, weight, inner, A, B, scaling)  # type: ignore[no-untyped-call]
    if rho is not None:
        result = scaled(result, rho, bias)
    return result.view(*x.shape[:-1], result.shape[-1])


class _LowRankLinear(torch.autograd.Function):
    """x W₀ᵀ + b + s·(x Aᵀ) Bᵀ, with the two gradients of x added in one buffer.

    The thin products stand with r as the rows where they can, which the matrix libraries like better.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        down = A @ x.T  # (r, tokens)
        ctx.save_for_backward(x, weight, A, B, down)
        ctx.scaling = scaling
        return F.linear(x, weight, bias).addmm_(down.T, B.T, alpha=scaling)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight, A, B, down), (g,) = ctx.saved_tensors, gradients
        if torch.is_grad_enabled():  # a second derivative is wanted: it must see what ``down`` was made of
            down = A @ x.T
        wants_x, wants_weight, wants_bias, wants_A, wants_B, _ = ctx.needs_input_grad
        up = g @ (ctx.scaling * B) if wants_x or wants_A else None  # (tokens, r)
        return (
            (g @ weight).addmm_(up, A) if wants_x else None,
            g.T @ x if wants_weight else None,
            g.sum(0) if wants_bias else None,
            up.T @ x if wants_A and up is not None else None,
            ((ctx.scaling * down) @ g).T if wants_B else None,
            None,
        )


class _Scaled(torch.autograd.Function):
    """x diag(f) + b; the gradient of f, Σ_t g_t ∘ x_t, is summed a block of tokens at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, factor)
        narrow = factor.to(x.dtype)
        return x * narrow if bias is None else torch.addcmul(bias.to(x.dtype), x, narrow)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, factor), (g,) = ctx.saved_tensors, gradients
        wants_x, wants_factor, wants_bias = ctx.needs_input_grad
        return (
            g * factor.to(g.dtype) if wants_x else None,
            column_dots(g, x, factor.dtype) if wants_factor else None,
            g.sum(0) if wants_bias else None,
        )


def scaled(x: Tensor, factor: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x diag(f) + b in the dtype of x, (tokens, features)."""
    result: Tensor = _Scaled.apply(x, factor, bias)  # type: ignore[no-untyped-call]
    return result


def column_dots(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Σ_t a_tj b_tj for every column j, summed in ``dtype``."""
    if torch.compiler.is_compiling():  # blocks would tie the compiled code to one number of tokens
        return (a.to(dtype) * b.to(dtype)).sum(0)
    parts = [(a[rows].to(dtype) * block.to(dtype)).sum(0) for rows, block in row_blocks(b)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def add_product(result: Tensor, down: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Return result + s·down Bᵀ, in place where the dtypes allow it: (tokens, out), (tokens, r), (out, r)."""
    if result.dtype == down.dtype == B.dtype:
        return result.addmm_(down, B.T, alpha=scaling)  # fused, and nothing saved F.linear's result
    return result + (scaling * F.linear(down, B)).to(result.dtype)


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


def frozen_product(weight: Tensor, x: Tensor) -> Tensor:
    """Return W X (out, r) in the dtype of X (in, r), differentiable in X; W (out, in) may be of lower precision."""
    if weight.dtype == x.dtype:
        return weight @ x
    result: Tensor = _FrozenProduct.apply(weight, x)  # type: ignore[no-untyped-call]
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


def row_blocks(matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows and the views of the matrix that they cut; one at least, even of an empty matrix."""
    entries = BLOCK_ENTRIES if matrix.device.type == "cpu" else BLOCK_ENTRIES_ELSEWHERE
    step = max(1, entries // max(1, matrix.shape[1]))
    for start in range(0, max(1, matrix.shape[0]), step):
        yield slice(start, start + step), matrix[start : start + step]


def product_blocks(weight: Tensor, A: Tensor, B: Tensor, scaling: float) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows and those rows of V = W₀ + s·B A, in the dtype of A; each block is the caller's own."""
    for rows, block in row_blocks(weight):
        yield rows, torch.addmm(block.to(A.dtype), B[rows], A, alpha=scaling)


def row_squares(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ‖w_i‖² for every row of W (out, in), in ``dtype``."""
    if weight.dtype == dtype:
        squares: Tensor = torch.linalg.vecdot(weight, weight)
        return squares
    return torch.cat([torch.linalg.vecdot(b, b) for b in (block.to(dtype) for _, block in row_blocks(weight))])


def weighted_column_squares(weight: Tensor, q: Tensor) -> Tensor:
    """Return Σ_i q_i w_ij² for every column j of W (out, in), differentiable in q (out,)."""
    result: Tensor = _WeightedColumnSquares.apply(weight, q)  # type: ignore[no-untyped-call]
    return result


def constant_norms(weight: Tensor, A: Tensor, B: Tensor, scaling: float, axis: Literal["row", "column"]) -> Tensor:
    """Return the norms of the rows (out,) or the columns (in,) of V = W₀ + s·B A, without a graph."""
    with torch.no_grad():
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
    row_norms, column_squares = [], A.new_zeros(A.shape[1])
    with torch.no_grad():
        for rows, V in product_blocks(weight, A, B, scaling):
            norm = torch.linalg.vector_norm(V, dim=1)
            p = magnitude[rows] / norm.masked_fill(norm == 0, 1.0)  # a zero row adds nothing, whatever its factor
            column_squares.addmv_(V.square_().T, p.square())
            row_norms.append(norm)
        return torch.cat(row_norms), column_squares.sqrt()


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


def safe_sqrt(squares: Tensor) -> Tensor:
    """Return √max(squares, 0), with a gradient of 0 instead of infinity at 0."""
    positive = squares > 0
    return torch.where(positive, squares.where(positive, 1.0).sqrt(), 0.0)


def ratio(magnitude: Tensor, norm: Tensor) -> Tensor:
    """Return magnitude / norm, and 1 where the norm is 0: a zero vector has no direction and stays as it is."""
    positive = norm > 0
    return torch.where(positive, magnitude / norm.where(positive, 1.0), 1.0)

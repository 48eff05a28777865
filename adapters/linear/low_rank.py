"""What the low-rank methods share: the linear map without W', and the norms of W₀ + s·B A without a dense B A.

LoRA, rsLoRA, DoRA and BoRA are all W' = diag(ρ) (W₀ + s·B A) diag(γ). So x W'ᵀ is: scale the input by γ, one linear
with W₀, the low-rank product, scale the output by ρ. Only the norms need W₀ again. Held constant, as the papers do in
the backward pass, they are read off V = W₀ + s·B A, made a few rows at a time that never leave the cache, by a compiled
loop (``deltaw.adapters.compiled.norms``) or by torch. To be differentiated, they come from small products,

    ‖w_i + s·b_i A‖² = ‖w_i‖² + 2s ⟨w_i, b_i A⟩ + s² b_i (A Aᵀ) b_iᵀ        for the rows w_i of W₀,

with ⟨w_i, b_i A⟩ = (W₀ Aᵀ)_i · b_i. Nothing here ever holds a dense B A or W'.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Axis = Literal["row", "column"]

BLOCK_ENTRIES = 1 << 18  # of a matrix at a time: a block and its temporaries stay in the processor's cache
FEWEST_BLOCKS = 4
BLOCK_ENTRIES_ELSEWHERE = 1 << 23  # on other devices, where the number of kernels costs
FEW_COLUMNS = 16  # below which a matrix product is faster with them as rows
LOOP_THREADS = 3  # up to which one thread in a compiled loop is faster than all of them in torch's operations


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
    start: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return x W'ᵀ + b for W' = diag(ρ) (W₀ − s·B₀ A₀ + s·B A) diag(γ), (…, out).

    Arguments:
        x: (…, in).
        weight, bias: W₀ (out, in) and b (out,) or ``None``.
        A, B: (r, in) and (out, r).
        scaling: s.
        dropout: Probability of dropping an entry of γ∘x on the low-rank path; 0 outside training.
        rho, gamma: Factors of the outputs (out,) and of the inputs (in,); ``None`` for ones.
        start: Constants A₀ (r, in) and B₀ (out, r), which dropout spares as it does W₀; ``None`` for none.
    """
    flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
    one_dtype = all(t is None or t.dtype == flat.dtype for t in (weight, bias, A, B, rho, gamma))
    if dropout or not one_dtype or torch.is_autocast_enabled(x.device.type):
        result = _composed(flat, weight, bias, A, B, scaling, rho, gamma, start, dropout)
    else:
        result = _LowRankLinear.apply(flat, weight, bias, A, B, scaling, rho, gamma, start)  # type: ignore[no-untyped-call]
    return result.view(*x.shape[:-1], result.shape[-1])


def _composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    rho: Tensor | None,
    gamma: Tensor | None,
    start: tuple[Tensor, Tensor] | None,
    dropout: float = 0.0,
) -> Tensor:
    """Return ``low_rank_linear`` of x (tokens, in) from PyTorch's own operations, for any mixture of dtypes."""
    if gamma is not None:
        x = x * gamma.to(x.dtype)
    result = F.linear(x, weight, bias if rho is None else None)  # (tokens, out)
    if start is not None:
        result = add_product(result, F.linear(x.to(start[0].dtype), start[0]), start[1], -scaling)
    path = F.dropout(x, dropout) if dropout else x
    result = add_product(result, F.linear(path.to(A.dtype), A), B, scaling)
    if rho is not None:
        rho = rho.to(result.dtype)
        result = result * rho if bias is None else torch.addcmul(bias.to(result.dtype), result, rho)
    return result


class _LowRankLinear(torch.autograd.Function):
    """``_composed`` without dropout and in one dtype, with fewer passes over (tokens, features).

    With x' = x γ, z = x' W₀ᵀ + s·(x' Aᵀ) Bᵀ and y = z ρ + b, the gradients are, from g = ∂L/∂y and g' = g ρ,

        x: (g' W₀ + s·(g' B) A) γ        γ: Σ_t x_t ∘ (g' W₀ + s·(g' B) A)_t        ρ: Σ_t g_t ∘ z_t
        A: s·(g' B)ᵀ x γ                 B: s·g'ᵀ (x' Aᵀ)

    What each step may write over is written over, and x' is not kept: γ goes to the small side of the gradient of A.
    Only z is, where there is a ρ; and x not even, where neither A nor γ is trained (LoRA-FA).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        rho: Tensor | None,
        gamma: Tensor | None,
        start: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        scaled = x if gamma is None else x * gamma
        left, right = _stacked(A, B, start)
        down = thin_product(scaled, right.T)  # (tokens, r), or (tokens, 2r)
        z = F.linear(scaled, weight, bias if rho is None else None).addmm_(down, left.T, alpha=scaling)
        if start is not None:
            down = down[:, : len(A)].clone()  # the start's own half is not kept
        kept = x if gamma is not None or ctx.needs_input_grad[1] or ctx.needs_input_grad[3] else None
        ctx.save_for_backward(kept, weight, bias, A, B, rho, gamma, down, None if rho is None else z)
        ctx.scaling, ctx.start = scaling, start
        if rho is None:
            return z
        return z * rho if bias is None else torch.addcmul(bias, z, rho)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight, bias, A, B, rho, gamma, down, z) = gradients, ctx.saved_tensors
        inputs = (x, weight, bias, A, B, ctx.scaling, rho, gamma, ctx.start)
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again: nothing kept, nothing overwritten
            if x is None:
                raise RuntimeError("with a frozen A no input is kept, so its gradient has no gradient of its own")
            chosen = [value for value, wants in zip(inputs, wanted, strict=True) if wants]
            found = iter(torch.autograd.grad(_composed(*inputs), chosen, g, create_graph=True))
            return tuple(next(found) if wants else None for wants in wanted)

        result: list[Tensor | None] = [None] * len(inputs)
        if wanted[2]:
            result[2] = g.sum(0)
        if wanted[6]:
            g, result[6] = scaled_and_dots(g, z, rho)
        elif rho is not None:
            g = g * rho
        if wanted[1]:
            result[1] = g.T @ (x if gamma is None else x * gamma)
        if wanted[4]:
            result[4] = thin_product(g.T, down)
        left, right = _stacked(A, B, ctx.start)
        up = thin_product(g, left)  # (tokens, r), or (tokens, 2r)
        for made in (up, result[4]) if ctx.scaling != 1 else ():
            if made is not None:
                made.mul_(ctx.scaling)
        if wanted[3]:
            grad_A = up[:, : len(A)].T @ x
            result[3] = grad_A if gamma is None else grad_A.mul_(gamma)
        if wanted[0] or wanted[7]:
            grad_x = (g @ weight).addmm_(up, right)
            if wanted[7]:
                result[0], result[7] = scaled_and_dots(grad_x, x, gamma, in_place=True)
            else:
                result[0] = grad_x if gamma is None else grad_x.mul_(gamma)
        return tuple(result)


def _stacked(A: Tensor, B: Tensor, start: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return B and A, or [B, −B₀] (out, 2r) and [A; A₀] (2r, in): one product of twice the rank costs less than two."""
    if start is None:
        return B, A
    return torch.cat((B, -start[1]), dim=1), torch.cat((A, start[0]))


def thin_product(x: Tensor, thin: Tensor) -> Tensor:
    """Return x (n, m) times a thin matrix (m, r): (n, r), transposed in memory where that is several times as fast."""
    if thin.shape[1] < FEW_COLUMNS and x.device.type == "cpu":
        return (thin.T @ x.T).T
    return x @ thin


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


def row_squares(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ‖w_i‖² for every row of W (out, in), in ``dtype``."""
    return torch.cat([torch.linalg.vecdot(b, b) for b in (block.to(dtype) for _, block in row_blocks(weight))])


def weighted_column_squares(weight: Tensor, q: Tensor) -> Tensor:
    """Return Σ_i q_i w_ij² for every column j of W (out, in), differentiable in q (out,)."""
    result: Tensor = _WeightedColumnSquares.apply(weight, q)  # type: ignore[no-untyped-call]
    return result


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


def _loop_norms(
    weight: Tensor, A: Tensor, B: Tensor, scaling: float, magnitude: Tensor | None, columns: bool = True
) -> tuple[Tensor, Tensor] | None:
    """Return ‖V_i:‖ (out,) and ‖(diag(p) V)_:j‖ (in,), p = magnitude / ‖V_i:‖ or 1, without a graph.

    ``None`` where the compiled loop cannot read the tensors.
    """
    factors = () if magnitude is None else (magnitude,)
    if not loop_reads(weight, A, B, *factors):
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


def starting_norms(base: Tensor, axis: Axis) -> Tensor:
    """Return ‖W₀‖ of the rows (out,) or the columns (in,), in its dtype, right to half a unit in the last place.

    The magnitudes of DoRA and BoRA start as these. A sum in float32 can be several units off, and as they multiply W₀,
    an update that is not there would then be seen at the start.
    """
    wide: Tensor = torch.linalg.vector_norm(base, dim=1 if axis == "row" else 0, dtype=torch.float64)
    return wide.to(base.dtype)


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
    if _all_positive(norm):
        return magnitude / norm
    positive = norm > 0
    return torch.where(positive, magnitude / norm.where(positive, 1.0), 1.0)


def _all_positive(norm: Tensor) -> bool:
    """Whether it is known without waiting for a device that no norm is 0 or NaN."""
    known = norm.device.type == "cpu" and not torch.compiler.is_compiling() and type(norm) is Tensor
    return known and norm.numel() > 0 and float(norm.detach().min()) > 0

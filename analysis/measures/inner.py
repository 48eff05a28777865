"""Inner products ⟨A, B⟩ = Σ_ij a_ij b_ij of updates, each a matrix or factors, in float64.

From factors, A = U V with U = Q_u R_u and Vᵀ = Q_v R_v, so A = Q_u C Q_vᵀ with the small core C = R_u R_vᵀ, and

    ‖A‖ = ‖C‖,        ⟨A, B⟩ = ⟨C, (Q_uᵀ Q_p) D (Q_vᵀ Q_q)ᵀ⟩        for B = Q_p D Q_qᵀ,
                      ⟨A, B⟩ = ⟨C, Q_uᵀ B Q_v⟩                       for a matrix B,

so that A is not built. Σ (UᵀP) ∘ (V Qᵀ) is the same number, but its terms are as large as the columns of the factors,
which may cancel in U V: where they do to a share δ, its error is eps/δ² of ‖A‖‖B‖. With orthonormal Q it is eps/δ,
which is what the rounding of the cores leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from deltaw.adapters.errors import NonFiniteError, ShapeError
from deltaw.adapters.method import ScaledFactors
from deltaw.analysis.measures.gram import power_of_two
from deltaw.analysis.measures.matrix import Matrix, finite, finite_matrix
from deltaw.analysis.measures.sizes import squared_norm
from deltaw.analysis.measures.threads import one_thread, side_by_side

T = TypeVar("T")
Update = Matrix | tuple[Matrix, Matrix]
_PART = 2**19  # entries of the rows that are looked at together


@dataclass(frozen=True, eq=False)
class Dense:
    """An update that is a matrix, ready for inner products.

    Arguments:
        matrix: A (out, in), as it was given.
        scale: A power of two; ``norm`` and what is computed is that of A/scale, so that no product over- or underflows.
        norm: ‖A‖_F/scale.
    """

    matrix: Tensor
    scale: float
    norm: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the matrix is."""
        return self.matrix.device

    def rows(self, start: int, stop: int) -> Tensor:
        """Return some rows of A/scale in float64."""
        wide = self.matrix[start:stop].double()
        return wide if self.scale == 1.0 else wide / self.scale


@dataclass(frozen=True, eq=False)
class Factored:
    """An update that is a product, ready for inner products: A/scale = U V = Q_u C Q_vᵀ.

    Arguments:
        left, right: U (out, r) and V (r, in), float64.
        scale, norm: As in `Dense`.
        q_left, core, q_right: Q_u (out, k), C (k, l) and Q_v (in, l), float64.
    """

    left: Tensor
    right: Tensor
    scale: float
    norm: float
    q_left: Tensor
    core: Tensor
    q_right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self.left.device

    def rows(self, start: int, stop: int) -> Tensor:
        """Return some rows of A/scale in float64."""
        return self.left[start:stop] @ self.right


Operand = Dense | Factored


def operand(name: str, update: object) -> Operand:
    """Return an update ready for inner products; what is one already as it is.

    Arguments:
        name: Of the argument, for messages.
        update: ΔW (out, in), or (U, V), or ``ScaledFactors``, of any floating dtypes.

    Raises:
        OptionError: Something is not a dense floating tensor or array.
        ShapeError: Something is not a matrix, or factors do not fit.
        NonFiniteError: NaN or infinity, or the product of the factors exceeds float64.
    """
    if isinstance(update, Dense | Factored):
        return update
    if isinstance(update, ScaledFactors):
        return _factored(name, update.U, update.V, update.scaling)
    if isinstance(update, tuple | list):
        if len(update) != 2:
            raise ShapeError(f"{name} is {len(update)} things; pass a matrix, or a pair of factors (U, V)")
        return _factored(name, update[0], update[1], 1.0)
    dense = finite(name, update)
    squared, scale = squared_norm(dense)
    return Dense(dense, scale, math.sqrt(squared))


def _factored(name: str, U: object, V: object, scaling: float) -> Factored:
    left, right = finite_matrix(f"{name}[0]", U), finite_matrix(f"{name}[1]", V)
    if left.shape[1] != right.shape[0]:
        raise ShapeError(f"{name} has factors {tuple(left.shape)} and {tuple(right.shape)}; pass (out, r) and (r, in)")
    sizes = power_of_two(left), power_of_two(right)
    left, right = left * (scaling / sizes[0]), right.to(left.device) / sizes[1]
    with one_thread():
        q_left, r_left = torch.linalg.qr(left)
        q_right, r_right = torch.linalg.qr(right.T)
        core = r_left @ r_right.T
        norm, scale = float(torch.linalg.matrix_norm(core)), sizes[0] * sizes[1]
    if not math.isfinite(norm * scale):
        raise NonFiniteError(f"{name}: the product of the factors exceeds float64; scale them down")
    return Factored(left, right, scale, norm, q_left, core, q_right)


def same_shape(first: Operand, second: Operand) -> None:
    """Raise a ShapeError where two updates are not of one matrix."""
    if first.shape != second.shape:
        raise ShapeError(
            f"first has shape {first.shape} and second has shape {second.shape}; pass updates of one matrix"
        )


def inner(first: Operand, second: Operand) -> float:
    """Return ⟨A, B⟩, of A/scale and B/scale, for two updates of one shape; the same for any number of threads."""
    if isinstance(first, Factored) and isinstance(second, Factored):
        where = first.device
        with one_thread():
            across, down = first.q_left.T @ second.q_left.to(where), second.q_right.to(where).T @ first.q_right
            return float((first.core * (across @ second.core.to(where) @ down)).sum())
    if isinstance(second, Factored):
        first, second = second, first
    if isinstance(first, Factored):
        q_left, core, q_right = (part.to(second.device) for part in (first.q_left, first.core, first.q_right))
        return math.fsum(by_rows(second, lambda rows, at: float(((q_left[at].T @ (rows @ q_right)) * core).sum())))
    return math.fsum(
        by_rows(first, lambda rows, at: float((rows * second.rows(at.start, at.stop).to(rows.device)).sum()))
    )


def cosine_of(first: Operand, second: Operand) -> float:
    """Return ⟨A, B⟩/(‖A‖‖B‖), in [−1, 1]; NaN where one of the two is zero."""
    whole = first.norm * second.norm
    return max(-1.0, min(1.0, inner(first, second) / whole)) if whole > 0 else math.nan


def by_rows(update: Operand, of_rows: Callable[[Tensor, slice], T]) -> list[T]:
    """Return what a function makes of each part of the rows of A/scale, in order, whichever thread computes it.

    Arguments:
        update: A.
        of_rows: From rows in float64, and which these are.
    """
    like = update.matrix if isinstance(update, Dense) else update.left
    return side_by_side(lambda at: of_rows(update.rows(at.start, at.stop), at), row_parts(update), like)


def row_parts(update: Operand) -> list[slice]:
    """Return the rows of an update in parts that caches hold; on an accelerator all of them."""
    rows, columns = update.shape
    height = max(64, _PART // columns) if update.device.type == "cpu" else rows
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]

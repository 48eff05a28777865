"""The leading singular subspaces of a weight matrix, with a bound on how far off they may be.

W = Σ_i σ_i u_i v_iᵀ. The leading k left vectors u_i span a subspace of the output space, the right ones one of the
input space. Either is determined by W as far as σ_k and σ_{k+1} are apart: an error E in W turns it by an angle with

    sin θ ≤ ‖E‖₂ / (σ_k − σ_{k+1} − ‖E‖₂)            (Wedin 1972; Davis, Kahan 1970 for the Gram matrix, with σ²)

so that rounding alone turns it anywhere where the two are equal. Two ways to it:

"gram": the eigenvectors of the Gram matrix of the smaller side, whose error is β, see `deltaw.analysis.measures.gram`;
the other side is W times these. Several times faster, and the fewer digits for it as σ_k is below σ₁.

"svd": the singular value decomposition of W, whose error is some √m·eps·σ₁.

And one that makes only the leading ones, of large matrices, where the bounds tell that they are these:

"krylov": products of W with thin matrices, see `deltaw.analysis.measures.principal_block`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.gram import EPS, error_bound, gram, squares
from deltaw.analysis.measures.matrix import Matrix, finite_matrix
from deltaw.analysis.measures.principal_block import Block, principal_block
from deltaw.analysis.measures.routes import SMALL
from deltaw.analysis.measures.thin import times_thin
from deltaw.analysis.measures.threads import one_thread

Count = int | float  # k, or the share of the energy


@dataclass(frozen=True, eq=False)
class Decomposed:
    """The singular values of a matrix, and its leading singular vectors.

    Arguments:
        left, right: u_1 … u_k (out, k) and v_1 … v_k (in, k), orthonormal columns, float64 on the matrix' device.
        values: σ, (m,) descending, float64 on the CPU, m = min(out, in); by "krylov" only the first k + 1.
        errors: How far off each σ may be.
        turned: The largest sine by which either subspace may be turned; infinite where rounding decides where it is.
        route: "gram", "svd" or "krylov".
    """

    left: Tensor
    right: Tensor
    values: Tensor
    errors: Tensor
    turned: float
    route: str

    @property
    def gap(self) -> float:
        """(σ_k − σ_{k+1})/σ_k, from 0 to 1, with σ_{m+1} = 0; NaN where σ_k is 0."""
        k = self.left.shape[1]
        last = float(self.values[k - 1])
        return (last - following(self.values, k)) / last if last > 0 else math.nan


class Principal:
    """The singular values and the leading singular subspaces of one matrix, each way at most once.

    To be made once of a W₀ that is compared with many W'.

    Arguments:
        matrix: W (out, in), a tensor or NumPy array of any floating dtype.
        k: How many directions, from 1 to min(out, in); or, between 0 and 1, the share of Σσ² that they hold.
        name: Of the matrix, for errors.

    Raises:
        OptionError: ``k`` is out of its range, or ``matrix`` no matrix.
        ShapeError: It is no matrix.
        NonFiniteError: NaN or infinity.

    Example:
        >>> found = Principal(torch.diag(torch.tensor([3.0, 2.0, 1.0])), k=0.9)
        >>> found.k, found.gap == 0.5, found.left.abs().T.tolist()
        (2, True, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    """

    def __init__(self, matrix: Matrix, k: Count = 16, name: str = "before") -> None:
        self.matrix = finite_matrix(name, matrix)  # float64
        self._wanted = checked_count(k, min(self.matrix.shape))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @cached_property
    def quick(self) -> Decomposed:
        """By the Gram matrix; by the decomposition where the matrix is so small that it costs nothing."""
        return self.exact if min(self.shape) < SMALL else by_gram(self.matrix, self._count)

    @cached_property
    def exact(self) -> Decomposed:
        """By the singular value decomposition."""
        return by_svd(self.matrix, self._count)

    @cached_property
    def block(self) -> Block | None:
        """By products alone; ``None`` where k is a share of the energy, W small, or that does not find them."""
        return principal_block(self.matrix, self._wanted) if isinstance(self._wanted, int) else None

    @cached_property
    def quick_values(self) -> tuple[Tensor, Tensor]:
        """All singular values and how far off each may be, without vectors where none were asked for yet."""
        if "quick" in self.__dict__ or min(self.shape) < SMALL:
            return self.quick.values, self.quick.errors
        return values_by_gram(self.matrix)

    @cached_property
    def exact_values(self) -> tuple[Tensor, Tensor]:
        """The same by the decomposition."""
        if "exact" in self.__dict__:
            return self.exact.values, self.exact.errors
        with one_thread():
            values = torch.linalg.svdvals(self.matrix).cpu()
        return values, torch.full_like(values, _backward(values))

    def _count(self, values: Tensor) -> int:
        return held_by(values, self._wanted) if isinstance(self._wanted, float) else self._wanted

    @property
    def k(self) -> int:
        """The number of directions."""
        return self._wanted if isinstance(self._wanted, int) else self.quick.left.shape[1]

    @property
    def values(self) -> Tensor:
        """All singular values, (min(out, in),) descending, float64 on the CPU."""
        return self.quick_values[0]

    @cached_property
    def best(self) -> Decomposed:
        """What says where the subspaces are: by products, or the Gram matrix, unless that leaves half of the digits."""
        if self.block is not None:
            return of_block(self.block)
        return self.quick if self.quick.turned <= math.sqrt(EPS) else self.exact

    @property
    def left(self) -> Tensor:
        """u_1 … u_k, (out, k), orthonormal columns."""
        return self.best.left

    @property
    def right(self) -> Tensor:
        """v_1 … v_k, (in, k), orthonormal columns."""
        return self.best.right

    @property
    def gap(self) -> float:
        """(σ_k − σ_{k+1})/σ_k: how well the subspaces are determined."""
        return self.best.gap

    @property
    def defined(self) -> bool:
        """Whether the subspaces are W's at all, or rounding's: σ_k and σ_{k+1} are the same to the last digits."""
        return math.isfinite(self.best.turned)


def of_block(block: Block) -> Decomposed:
    """Return what was found by products."""
    return Decomposed(block.left, block.right, block.values, block.errors, block.turned, "krylov")


def by_svd(matrix: Tensor, count: Callable[[Tensor], int]) -> Decomposed:
    """Return the singular values and leading vectors of a matrix (out, in) in float64."""
    with one_thread():
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values.cpu()
    k = count(values)
    error = _backward(values)
    turned = _turned(error, float(values[k - 1]), following(values, k))
    return Decomposed(left[:, :k], right[:k].T, values, torch.full_like(values, error), turned, "svd")


def by_gram(matrix: Tensor, count: Callable[[Tensor], int]) -> Decomposed:
    """Return the singular values and leading vectors of a matrix (out, in) in float64, by way of σ²."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T  # (m, n)
    found = gram(matrix)
    with one_thread():
        squared, vectors = torch.linalg.eigh(found.lower, UPLO="L")
        squared = squared.flip(0).clamp(min=0).cpu()
        bound = error_bound(squared, float(found.lower.diagonal().sum()), found.inner)
        k = count(squared.sqrt())
        first = vectors[:, -k:].flip(1)  # (m, k)
        # The other side: wideᵀ·first = Y S Zᵀ, whose singular vectors are pairs, in order.
        second, _, turn = torch.linalg.svd(times_thin(wide.T, first), full_matrices=False)
        first = first @ turn.T
    sigma = squared.sqrt()
    errors = (bound / sigma).clamp(max=math.sqrt(bound)) * found.scale
    turned = _turned(bound, float(squared[k - 1]), following(squared, k))
    left, right = (first, second) if wide is matrix else (second, first)
    return Decomposed(left, right, sigma * found.scale, errors, turned, "gram")


def values_by_gram(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values of a matrix by way of σ², and how far off each may be, (m,) each."""
    found = gram(matrix)
    squared, bound = squares(found)
    sigma = squared.sqrt()
    return sigma * found.scale, (bound / sigma).clamp(max=math.sqrt(bound)) * found.scale


def _backward(values: Tensor) -> float:
    """Return how far off the decomposition's singular values may be: its errors are those of a matrix so near to W."""
    return 4 * math.sqrt(len(values)) * EPS * float(values[0])


def _turned(error: float, last: float, after: float) -> float:
    """Return the sine by which an error turns a subspace; infinite where it reaches across the gap."""
    apart = last - after - 2 * error
    return error / apart if apart > 0 else math.inf


def following(values: Tensor, k: int) -> float:
    """Return the value after the first k, 0 where there is none."""
    return float(values[k]) if k < len(values) else 0.0


def held_by(values: Tensor, share: float) -> int:
    """Return the fewest singular values, largest first, whose squares hold this share of Σσ²; 1 for zeros.

    Example:
        >>> held_by(torch.tensor([3.0, 1.0, 1.0]), 0.9)
        2
    """
    first = float(values[0]) or 1.0
    energy = (values.double() / first).square().cumsum(0)  # no square under- or overflows
    return min(len(values), int((energy < share * float(energy[-1])).sum()) + 1)


def checked_count(k: object, most: int) -> Count:
    """Return k as a whole number, or the share of the energy.

    Raises:
        OptionError: It is neither a whole number from 1 to ``most`` nor a number between 0 and 1.
    """
    wrong = f"k is {k!r}; choose a whole number from 1 to {most}, or a share of the energy between 0 and 1, as 0.9"
    if isinstance(k, float):
        if 0 < k < 1:
            return float(k)
        raise OptionError(wrong)
    try:
        number = whole_number("k", k, 1)
    except OptionError:
        raise OptionError(wrong) from None
    if number > most:
        raise OptionError(wrong)
    return number

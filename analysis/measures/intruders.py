"""Intruder dimensions: strong singular vectors of the trained weights that the base has nothing like."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.matrix import Matrix, finite_matrix, from_one_to
from deltaw.analysis.measures.subspace import Directions, directions
from deltaw.analysis.measures.threads import one_thread


@dataclass(frozen=True, eq=False)
class Intruders:
    """How like the base the strongest singular vectors of the trained weights are.

    Arguments:
        singular_values: σ_j of W', the k largest, (k,) in float64.
        similarity: max_i |cos(u'_j, u_i)| over all left singular vectors u_i of W₀, (k,) in float64, in [0, 1].
        epsilon: The similarity below which a vector is an intruder.
    """

    singular_values: Tensor = field(repr=False)
    similarity: Tensor
    epsilon: float

    @property
    def found(self) -> Tensor:
        """Which of the vectors are intruders, (k,) bool."""
        return self.similarity < self.epsilon

    @property
    def count(self) -> int:
        """The number of intruders."""
        return int(self.found.sum())


@torch.no_grad()
@one_thread()
def intruders(before: Matrix | Directions, after: Matrix, *, k: int = 10, epsilon: float = 0.5) -> Intruders:
    r"""Return how like W₀'s the top k left singular vectors of W' are, and which of them are intruders.

        similarity_j = max_i |cos(u'_j, u_i)|;    u'_j is an intruder where similarity_j < ε

    over all left singular vectors u_i of W₀ with a singular value above rounding. The absolute value, because the sign
    of a singular vector is arbitrary. Where singular values of W₀ or W' are nearly equal, their vectors turn among each
    other at the slightest change and the similarity falls without any intruder: it is a measure for the strong, well
    separated directions, hence k.

    Cost: the singular vectors of both matrices in float64, 0.3 s each for 768×768 on one core.

    Arguments:
        before: W₀ (out, in); or, where it is compared with many, ``directions(W₀.double())``.
        after: W' (out, in).
        k: How many singular vectors of W' are looked at, from 1 to its rank.
        epsilon: ε, in (0, 1].

    Returns:
        `Intruders`.

    Raises:
        OptionError: ``k`` or ``epsilon`` is out of its range, or a matrix is zero.
        ShapeError: The two differ in shape.
        NonFiniteError: NaN or infinity.

    Source:
        Shuttleworth et al. 2024, definition 1 and algorithm 1.

    Example:
        >>> before = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> new = torch.tensor([[1.0], [1.0], [1.0]])  # as far as can be from all three
        >>> intruders(before, before + 4 * new @ new.T, k=1, epsilon=0.7).count
        1
        >>> intruders(before, 2 * before, k=3).count
        0
    """
    if not (isinstance(epsilon, int | float) and math.isfinite(epsilon) and 0 < epsilon <= 1):
        raise OptionError(f"epsilon is {epsilon!r}; choose a cosine above 0 and at most 1, as 0.5")
    # In float64, where only rounding in the SVD counts as zero: W₀ and W' are what they are, to the last bit.
    base = before if isinstance(before, Directions) else directions(finite_matrix("before", before))
    trained = directions(finite_matrix("after", after))
    shapes = [(len(d.left), len(d.right)) for d in (base, trained)]
    if shapes[0] != shapes[1]:
        raise ShapeError(f"before has shape {shapes[0]} and after has shape {shapes[1]}; pass one matrix at two steps")
    for name, found in (("before", base), ("after", trained)):
        if found.count == 0:
            raise OptionError(f"{name} is zero; it has no singular vectors to compare")
    if not from_one_to(trained.count, k):
        raise OptionError(f"k is {k!r}; choose a whole number from 1 to {trained.count}, the rank of after")
    similarity = (trained.left[:, :k].T @ base.left).abs().amax(1).clamp(max=1.0)  # (k,)
    return Intruders(trained.spectrum.singular_values[:k], similarity, float(epsilon))

"""How far fine-tuning turns the leading singular subspaces of a weight matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.adapters.errors import ShapeError
from deltaw.adapters.method import ScaledLowRank
from deltaw.analysis.measures.matrix import Matrix
from deltaw.analysis.measures.principal import Count, Decomposed, Principal, of_block
from deltaw.analysis.measures.principal_block import near_block
from deltaw.analysis.measures.product import Product
from deltaw.analysis.measures.subspace import principal_angles
from deltaw.analysis.measures.threads import one_thread

AGREE = 1e-6  # relative, of an angle: what the faster way may leave uncertain


@dataclass(frozen=True, eq=False)
class Rotation:
    """How far the leading k singular subspaces of W' are turned against those of W₀; all angles in degrees.

    Arguments:
        k: The number of directions.
        left, right: The largest principal angle between the two left and the two right subspaces, from 0 to 90; NaN
            where σ_k and σ_{k+1} of W₀ or of W' are the same to the last digits, as then there is no such subspace.
        left_angles, right_angles: All principal angles, (k,) float64 on the CPU, smallest first.
        block: U_kᵀ W' V_k, (k, k) float64 on the CPU, with U_k and V_k of W₀: the projected rotation.
        block_change: ‖U_kᵀ (W' − W₀) V_k‖_F / ‖U_kᵀ W₀ V_k‖_F.
        gap, gap_after: (σ_k − σ_{k+1})/σ_k of W₀ and of W'.
        error: How far off left and right may be by rounding.
        route: By which way: "krylov" from products with thin matrices, "gram", "svd", or "same" where W' is W₀ to the
            last bit.
    """

    k: int
    left: float
    right: float
    left_angles: Tensor = field(repr=False)
    right_angles: Tensor = field(repr=False)
    block: Tensor = field(repr=False)
    block_change: float
    gap: float
    gap_after: float
    error: float
    route: str


@public
@torch.no_grad()
def rotation(before: Matrix | Principal, after: Matrix | Principal, k: Count = 16) -> Rotation:
    r"""Return how far the leading k left and right singular subspaces of W' are turned against those of W₀.

        cos θ_i = σ_i(U_kᵀ U'_k),    sin θ_i = σ_i(U'_k − U_k U_kᵀ U'_k)            (left; V_k for right)

    with U_k the leading k left singular vectors of W₀, U'_k those of W'. Each angle is taken from sine and cosine
    together, so that none is lost near 0 or 90°. What remains is what rounding does to the vectors themselves, `error`:
    with σ_k − σ_{k+1} a hundredth of σ_1, about 1e-13 of a radian. The Gram matrix finds the vectors where that leaves
    the angles right to 1e-6, else the singular value decomposition. Of matrices of 768 and more a block Krylov method
    finds W₀'s, and from there W''s, with a bound that is held to the same 1e-6, or to what rounding leaves the
    decomposition; where it is not met, as where σ_k is not clear of what follows, the others do.

    An update turns the subspaces by at most arcsin(‖ΔW‖₂/(σ_k − σ_{k+1})), and by about as much if it mixes the
    neighbours of the boundary: where singular values are crowded at k, the angle says more of the crowd than of the
    update. Look at `gap`, and at `deltaw.analysis.measures.random_update.random_rotation`.

    Cost: for k far below a large matrix' size some hundred products with vectors; else the eigenvectors of both Gram
    matrices, or both decompositions, in float64.

    Arguments:
        before: W₀ (out, in), a tensor or NumPy array of any floating dtype; or, where it is compared with many,
            ``Principal(W₀, k)``, whose k then counts.
        after: W' (out, in); or a `Principal` of the same k.
        k: How many directions, from 1 to min(out, in); or, as a number between 0 and 1, as many as hold this share of
            Σσ² of W₀.

    Returns:
        `Rotation`.

    Raises:
        OptionError: ``k`` is out of its range, or something is no matrix.
        ShapeError: The two differ in shape.
        NonFiniteError: NaN or infinity.

    Source:
        Zhu et al. 2025, "The Path Not Taken" (arXiv 2511.08567), section 4.1, for the angles; Jin et al. 2026,
        "Rotation-Preserving Supervised Fine-Tuning" (arXiv 2605.10973), for the block, whose change its method
        penalises; Björck, Golub 1973 (the cosine and the sine form).

    Example:
        >>> before = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> turn = torch.tensor([[0.8, 0.0, -0.6], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8]])
        >>> found = rotation(before, turn @ before, k=1)
        >>> round(found.left, 4), round(found.right, 4)
        (36.8699, 0.0)
    """
    base = before if isinstance(before, Principal) else Principal(before, k)
    trained = after if isinstance(after, Principal) else Principal(after, base.k, "after")
    same_shape(base.shape, trained.shape)
    new = trained.matrix.to(base.matrix.device)
    if torch.equal(base.matrix, new):
        return _unmoved(base)
    return _by_products(base, Product(new)) or _by_decompositions(base, trained, new)


@torch.no_grad()
def rotation_of_form(base: Principal, form: ScaledLowRank) -> Rotation:
    """Return `rotation` of W' = diag(ρ)(W₀ + U V)diag(γ), which is built only where products do not tell it.

    Raises:
        NonFiniteError: NaN or infinity.
    """
    product = Product(base.matrix, form)
    if product.unmoved:
        return _unmoved(base)
    if product.finite and (found := _by_products(base, product)) is not None:
        return found
    return rotation(base, product.dense())


def _unmoved(base: Principal) -> Rotation:
    nothing = torch.full((base.k,), 0.0 if base.defined else math.nan, dtype=torch.float64)
    block = _block(base.best, base.matrix)
    return _rotation(base, (nothing, nothing), (base.best, base.best), block, block, 0.0, "same")


def _by_products(base: Principal, after: Product) -> Rotation | None:
    """Return the rotation from the leading directions alone, where their bounds tell it."""
    if base.block is None or (found := near_block(base.block, base.matrix, after, AGREE)) is None:
        return None
    pair = of_block(base.block), of_block(found)
    with one_thread():
        block = (pair[0].left.T @ after.times(pair[0].right.T).T).cpu()
    return _rotation(base, _angles(*pair), pair, block, _block(pair[0], base.matrix), _error(pair), "krylov")


def _by_decompositions(base: Principal, trained: Principal, new: Tensor) -> Rotation:
    pair = base.quick, trained.quick
    turned = _angles(*pair)
    if not _certain(*pair, *turned):
        pair = base.exact, trained.exact
        turned = _angles(*pair)
    route = "svd" if "svd" in (pair[0].route, pair[1].route) else "gram"
    return _rotation(base, turned, pair, _block(pair[0], new), _block(pair[0], base.matrix), _error(pair), route)


def _error(pair: tuple[Decomposed, Decomposed]) -> float:
    """Return how far off the angles may be, in degrees."""
    return math.degrees(math.asin(min(1.0, sum(found.turned for found in pair))))


def _rotation(
    base: Principal,
    turned: tuple[Tensor, Tensor],
    pair: tuple[Decomposed, Decomposed],
    block: Tensor,
    own: Tensor,
    error: float,
    route: str,
) -> Rotation:
    """Return it, with the block of W' and that of W₀."""
    size = float(own.norm())
    return Rotation(
        k=base.k,
        left=float(turned[0][-1]),
        right=float(turned[1][-1]),
        left_angles=turned[0],
        right_angles=turned[1],
        block=block,
        block_change=float((block - own).norm()) / size if size > 0 else math.nan,
        gap=pair[0].gap,
        gap_after=pair[1].gap,
        error=error,
        route=route,
    )


def same_shape(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Raise where W₀ and W' are not of one shape."""
    if before != after:
        raise ShapeError(f"before has shape {before} and after has shape {after}; pass one matrix at two steps")


def _angles(before: Decomposed, after: Decomposed) -> tuple[Tensor, Tensor]:
    """Return the principal angles of the left and of the right subspaces in degrees, (k,) each, smallest first."""
    found = []
    for one, other in ((before.left, after.left), (before.right, after.right)):
        n, k = one.shape
        if not (math.isfinite(before.turned) and math.isfinite(after.turned)):
            found.append(torch.full((k,), math.nan, dtype=torch.float64))
        elif k == n:  # the whole space
            found.append(torch.zeros(k, dtype=torch.float64))
        else:
            found.append(torch.rad2deg(principal_angles(one, other)))
    return found[0], found[1]


def _certain(before: Decomposed, after: Decomposed, left: Tensor, right: Tensor) -> bool:
    """Return whether both largest angles are right to `AGREE`, but for one of a whole space, which is 0."""
    largest = [float(angles[-1]) for angles in (left, right)]
    moved = [math.radians(angle) for angle in largest if angle != 0]
    # A NaN is not certain: the other way may tell the two singular values apart.
    return bool(moved) and all(before.turned + after.turned <= AGREE * angle for angle in moved)


def _block(base: Decomposed, matrix: Tensor) -> Tensor:
    """Return U_kᵀ W V_k, (k, k) on the CPU."""
    with one_thread():
        return (base.left.T @ (matrix @ base.right)).cpu()

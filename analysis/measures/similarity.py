"""How similar two weight matrices are, whatever the basis of their features: linear CKA."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.matrix import Matrix, finite_matrix
from deltaw.analysis.measures.threads import one_thread

Examples = Literal["row", "column"]

_EPS = torch.finfo(torch.float64).eps


def similarity(first: Matrix, second: Matrix, *, examples: Examples = "row") -> float:
    r"""Return the linear centred kernel alignment of two weight matrices.

        CKA = ⟨K, L⟩ / (‖K‖_F ‖L‖_F),    K = X Xᵀ,    L = Y Yᵀ

    with X and Y the matrices minus the mean of their examples. With rows as examples, K holds how like the output
    features are to each other: CKA is 1 where both matrices have the same such pattern, whatever rotation of the inputs
    lies between them. It does not change when X or Y is scaled, when the features are turned, or when all examples are
    shifted by the same vector.

    Weights before and after fine-tuning are so alike that 1 − CKA is what can be read: see `dissimilarity`.

    Arguments:
        first, second: X and Y, (out, in) each, any floating dtype; widened to float64. Only the number of examples has
            to agree.
        examples: "row" compares the patterns of the output features, "column" those of the input features.

    Returns:
        CKA, in [0, 1]; NaN where all examples of a matrix are the same, as then it has no pattern.

    Raises:
        OptionError: ``examples`` is neither, or something is not a floating tensor.
        ShapeError: Something is not a matrix, or the numbers of examples differ.
        NonFiniteError: NaN or infinity.

    Source:
        Kornblith et al. 2019, section 3 and equation 2, there of activations.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> similarity(weight, 3 * weight.flip(1)), similarity(weight, torch.tensor([[1.0], [-1.0], [0.0]]))
        (1.0, 0.9486832980505138)
    """
    return 1.0 - dissimilarity(first, second, examples=examples)


@torch.no_grad()
@one_thread()
def dissimilarity(first: Matrix, second: Matrix, *, examples: Examples = "row") -> float:
    r"""Return 1 − CKA, with its digits where the two are nearly the same.

        1 − CKA = ½ ‖K − L‖_F²  for ‖K‖_F = ‖L‖_F = 1,    K − L = ½ (S Dᵀ + D Sᵀ),    S = X + Y,    D = X − Y

    1 − CKA as it is written has no digit left below 1e-16, which is where a relative change of 1e-8 leads. From the
    difference a relative change δ is told with a relative error of about 1e-16/δ. With more examples than features the
    same comes from products of the features' size, ‖K − L‖_F² = ½ (⟨DᵀS, SᵀD⟩ + ⟨SᵀS, DᵀD⟩), so nothing of the
    size examples × examples is made.

    Cost: O(out·in·min(examples, features)); 0.2 s for 768×768 on one core.

    Arguments, raises:
        As `similarity`.

    Returns:
        1 − CKA, in [0, 1]; NaN as in `similarity`.

    Source:
        As `similarity`; the difference form is that of ``change``.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
        >>> nudge = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1e-10, 0.0]], dtype=torch.float64)
        >>> f"{dissimilarity(weight, weight + nudge):.3e}", 1 - similarity(weight, weight + nudge)
        ('4.800e-21', 0.0)
    """
    if examples not in ("row", "column"):
        raise OptionError(f"examples is {examples!r}; choose 'row' or 'column'")
    X, Y = (finite_matrix(name, tensor) for name, tensor in (("first", first), ("second", second)))
    if examples == "column":
        X, Y = X.T, Y.T
    if len(X) != len(Y):
        raise ShapeError(
            f"first has shape {tuple(first.shape)} and second {tuple(second.shape)}; "
            f"pass matrices with the same number of {examples}s"
        )
    X, Y = _unit(X), _unit(Y.to(X.device))  # (examples, features)
    if X.shape[1] != Y.shape[1]:  # further features of zeros change no product of examples
        width = max(X.shape[1], Y.shape[1])
        X, Y = (torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (X, Y))
    S, D = X + Y, X - Y
    if len(X) <= X.shape[1]:
        product = S @ D.T
        half = float((product + product.T).square().sum()) / 8
    else:
        cross = D.T @ S
        half = float((cross * cross.T).sum() + ((S.T @ S) * (D.T @ D)).sum()) / 4
    return half if math.isnan(half) else min(max(half, 0.0), 1.0)


def _unit(examples: Tensor) -> Tensor:
    """Return the examples minus their mean, scaled to ‖X Xᵀ‖_F = 1; NaN where all of them are the same."""
    top = examples.abs().amax()
    scaled = examples / torch.where(top > 0, top, 1.0)  # so that no fourth power over- or underflows
    centred = scaled - scaled.mean(0)
    if bool(centred.abs().amax() <= len(centred) * _EPS):
        return torch.full_like(centred, torch.nan)
    gram = centred.T @ centred if len(centred) > centred.shape[1] else centred @ centred.T
    unit: Tensor = centred / torch.linalg.matrix_norm(gram).sqrt()
    return unit

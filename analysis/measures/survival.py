"""How much of an update is left when it is merged into weights of few digits."""

from dataclasses import dataclass

import torch

from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.matrix import Matrix, matrix


@dataclass(frozen=True)
class Survival:
    """The part of an update that survives merging.

    Arguments:
        entries: Share of the update's entries other than 0 whose merged weight differs from the base, in [0, 1];
            1 for an update of zeros.
        error: ‖M − ΔW‖_F / ‖ΔW‖_F, M the update that is found in the merged weights; 0 for an update of zeros.
    """

    entries: float
    error: float


def survival(base: Matrix, update: Matrix, dtype: torch.dtype) -> Survival:
    r"""Return what is left of an update that is merged into a base of a given dtype.

    With round(·) to ``dtype``, the merged update is

        M = round(round(W₀) + ΔW) − round(W₀),

    and of it the share of entries that changed at all and its relative error are told. With a relative update of 1e-4
    hardly an entry of a bfloat16 matrix changes, as neighbouring numbers lie 2⁻⁸ apart.

    Arguments:
        base: W₀ (out, in).
        update: ΔW (out, in), exact: not read off merged weights.
        dtype: What the merged weights are kept in, a floating dtype.

    Raises:
        ShapeError: The two differ in shape.
        OptionError: The dtype is not floating.

    Example:
        >>> base, update = torch.ones(2, 2), torch.tensor([[0.5, 0.0], [1e-4, 0.25]])
        >>> survival(base, update, torch.bfloat16).entries == 2 / 3
        True
    """
    base, update = matrix("base", base), matrix("update", update)
    if base.shape != update.shape:
        raise ShapeError(f"the base is {tuple(base.shape)}, the update {tuple(update.shape)}; they must be alike")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise OptionError(f"dtype is {dtype!r}; weights are merged into a floating dtype, for example torch.bfloat16")
    there, exact = base.to(dtype).double(), update.double()
    merged = (there + exact).to(dtype).double() - there
    moved = exact != 0
    size = torch.linalg.vector_norm(exact).item()
    if size == 0:
        return Survival(1.0, 0.0)
    changed = ((merged != 0) & moved).sum().item() / moved.sum().item()
    return Survival(changed, torch.linalg.vector_norm(merged - exact).item() / size)

"""How evenly an update is spread over its directions: the entropy of its singular values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError


@public
@torch.no_grad()
def spectral_entropy(singular_values: Tensor, *, power: int = 1, size: int | None = None) -> float:
    r"""Return the normalised entropy of singular values.

        H = −Σ_i p_i log p_i / log m,        p_i = σ_i^q / Σ_j σ_j^q

    with q = 1 for the singular values themselves, as in the effective rank exp(−Σ p log p), or q = 2 for their energy.
    It is 0 where one direction holds all, 1 where m directions hold the same. Normalised by log m with
    m = min(out, in), updates of any rank are on one scale; an update of rank r reaches log r / log m at most.

    The two weigh differently: q = 2 hardly sees the weak directions that q = 1 counts. Name the one that is meant.

    Arguments:
        singular_values: σ, at least 0; (k,), of any floating dtype. Zeros count for nothing, so those of a spectrum
            above the tolerance are enough (`Spectrum.signal`).
        power: q, 1 or 2.
        size: m; ``None`` for how many singular values there are.

    Returns:
        In [0, 1]; NaN where all are zero; 0 for m = 1.

    Raises:
        OptionError: ``power`` is neither, ``size`` is below the number of values above 0, or something is negative.
        ShapeError: Not a vector with entries.
        NonFiniteError: NaN or infinity.

    Source:
        Roy, Vetterli 2007 (q = 1, not normalised); Alter, Brown, Botstein 2000 (q = 2, normalised). "Calibrating and
        Rotating" (arXiv 2511.00051) speaks of the singular value entropy of ΔW; which q it takes was not read.

    Example:
        >>> spectral_entropy(torch.tensor([1.0, 1.0, 0.0, 0.0])), spectral_entropy(torch.tensor([2.0, 0.0]))
        (0.5, 0.0)
    """
    if power not in (1, 2) or isinstance(power, bool):
        raise OptionError(f"power is {power!r}; choose 1 for σ or 2 for σ²")
    if not isinstance(singular_values, Tensor) or not singular_values.is_floating_point():
        raise OptionError(f"singular_values is a {type(singular_values).__name__}; pass a tensor of a floating dtype")
    if singular_values.ndim != 1 or not len(singular_values):
        raise ShapeError(f"singular_values has shape {tuple(singular_values.shape)}; pass a vector with entries")
    sigma = singular_values.double()
    if not bool(sigma.isfinite().all()):
        raise NonFiniteError("singular_values holds NaN or infinity")
    if bool((sigma < 0).any()):
        raise OptionError("singular_values holds a number below 0; pass singular values")
    count = int((sigma > 0).sum())
    m = len(sigma) if size is None else whole_number("size", size, 1)
    if m < count:
        raise OptionError(f"size is {m}, and {count} singular values are above 0; pass min(out, in)")
    if count == 0:
        return math.nan
    if m == 1:
        return 0.0
    p = (sigma / sigma.max()) ** power
    p = p / p.sum()
    return max(0.0, min(1.0, -float(torch.xlogy(p, p).sum()) / math.log(m)))

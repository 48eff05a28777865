"""The sums of ``built`` on an accelerator: W' is built a block of rows at a time, and compared before it is gone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltaw.adapters.method import ScaledLowRank
from deltaw.analysis.measures.sums import Side, Sums

BLOCK = 2**21  # entries of a block, of which there is one a step in float64: 16 MB each


def sums_on_device(base: Tensor, forms: Sequence[ScaledLowRank], pairs: Sequence[tuple[int, int]]) -> dict[Side, Sums]:
    """Return the three sums of pairs of matrices along both axes, as ``built_sums``, on the device of the base.

    Arguments:
        base: W₀ (out, in), float32 or float64.
        forms: What W' follows from, of each matrix, on the same device.
        pairs: Two positions in ``forms``, −1 for W₀.

    Example:
        >>> one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
        >>> found = sums_on_device(torch.eye(2), [ScaledLowRank(2 * one, 3 * one, zero, zero.T)], [(-1, 0)])
        >>> [x.tolist() for x in found["row"]]
        [[[1.0, 1.0]], [[5.0, 5.0]], [[25.0, 25.0]]]
    """
    height, width = base.shape
    rows = torch.empty(len(pairs), 3, height, dtype=torch.float64, device=base.device)
    columns = torch.zeros(len(pairs), 3, width, dtype=torch.float64, device=base.device)
    scaled = [V * gamma for _, gamma, _, V in forms]
    for start in range(0, height, max(1, BLOCK // width)):
        part = slice(start, start + max(1, BLOCK // width))
        wide = base[part].double()
        built = [
            form.rho[part, None] * (wide * form.gamma) + (form.rho[part, None] * form.U[part]) @ right
            for form, right in zip(forms, scaled, strict=True)
        ]
        built.append(wide)  # at −1
        for pair, (first, second) in enumerate(pairs):
            a = built[first]
            d = built[second] - a
            for k, (x, y) in enumerate(((a, a), (a, d), (d, d))):
                product = x * y
                rows[pair, k, part] = product.sum(1)
                columns[pair, k] += product.sum(0)
    return {"row": Sums(*rows.unbind(1)), "column": Sums(*columns.unbind(1))}

"""AsyLoRA: LoRA whose A is a frozen random matrix with orthonormal rows."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.methods.lora_fa import FrozenDown


@dataclass(frozen=True, kw_only=True)
class AsyLoRA(FrozenDown):
    r"""Asymmetric low-rank adaptation.

        W' = W₀ + s·B A,    A Aᵀ = I, drawn and frozen, B = 0 at the start

    A's row space is uniform among the r-dimensional subspaces (QR of a Gaussian). Trainable: r·out.

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``. BoRA's Table 1 has it with rank 128.

    Source:
        Zhu et al. 2024, "Asymmetry in low-rank adapters of foundation models", §4 (B̂ trained, A random orthogonal).
    """

    name = "asylora"
    title = "AsyLoRA"
    formula = "W₀ + s·B A, A frozen with orthonormal rows"
    source = "Zhu et al. 2024"
    counts = "r·out"
    look = ("#56B4E9", "^")

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """B zero, A with orthonormal rows."""
        A = orthonormal_rows(self.rank, base.shape[1], generator).to(base.dtype)
        return {"lora_B": base.new_zeros(base.shape[0], self.rank), "lora_A": A}


def orthonormal_rows(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return a random (rows, columns) with orthonormal rows in float64; the first rows are the same for any number."""
    # Row by row: a longer draw at once would not begin with the numbers of a shorter one.
    gaussian = [torch.randn(columns, generator=generator, dtype=torch.float64) for _ in range(rows)]
    Q, R = torch.linalg.qr(torch.stack(gaussian, dim=1))
    rows_of_it: Tensor = (Q * R.diagonal().sign()).T
    return rows_of_it  # with R's diagonal positive, Q is unique, and uniform (Mezzadri 2007)

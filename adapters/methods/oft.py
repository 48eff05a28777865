"""OFT: W₀ turned by a block-diagonal rotation of its inputs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.method import Layer, Method, Shape, State


@dataclass(frozen=True, kw_only=True)
class OFT(Method):
    r"""Orthogonal fine-tuning.

        W' = W₀ Rᵀ,    R = diag(R_1, …, R_n),    R_k = (I − Q_k)(I + Q_k)⁻¹,    Q_k = −Q_kᵀ

    The blocks R_k (b, b) are Cayley transforms of skew-symmetric Q_k, so they are orthogonal and have determinant 1.
    Q starts at zero, so W' = W₀ at the start. Trainable: b·(b − 1)/2 a block, in·(b − 1)/2 altogether.

    Its exact null: every row of W₀ is turned by the same R. So the **rows keep their norms and the angles between
    them**: ΔM along axis "row" is 0 whatever is learnt, and only ΔD moves. The column norms, ‖W₀ Rᵀ e_j‖, do change.
    The paper writes a layer as z = Wᵀx, with neurons as the columns of W, W = R W₀; these are the rows here.

    Arguments:
        block_size: b. Where it does not divide the number of inputs, the next number that does is taken, at most that
            number itself, so that all blocks are of one size.
        block_share: One block for all places (the paper's R_i = R_j): b·(b − 1)/2 parameters.
        neumann_terms: ``None`` for the exact transform. k for PEFT's approximation I + 2Q + 2Q² + … + Q^(k − 1) of the
            transform of −Q (the last term has no 2), whose R is orthogonal only as far as Q is small; PEFT has 5.

    Raises:
        OptionError: An option is out of its range.

    Source:
        Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", equation 4 and §3.3; without
        its bound on ‖R − I‖ (COFT). Qiu et al. 2025 (OFTv2) for turning the inputs in the place of W₀, and the series.

    Example:
        >>> from deltaw.adapters import OFT, adapted, inject
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), OFT(block_size=3), targets=["0"])
        >>> {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        {'0.oft_R': (2, 3)}
    """

    name = "oft"
    title = "OFT"
    formula = "W₀ Rᵀ, R block-diagonal and orthogonal (Cayley)"
    source = "Qiu et al. 2023"
    counts = "in·(b − 1)/2, b the block size"
    look = ("#AA3377", "^")

    block_size: int = 32
    block_share: bool = False
    neumann_terms: int | None = None

    scales_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.take_whole_numbers(block_size=2, neumann_terms=2)

    def block(self, in_features: int) -> int:
        """Return the size of a block: the least divisor of ``in_features`` that is at least ``block_size``."""
        return next(
            size for size in range(min(self.block_size, in_features), in_features + 1) if not in_features % size
        )

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """The entries of Q above the diagonal, row by row, a row a block: (n, b·(b − 1)/2), or (1, b·(b − 1)/2)."""
        size = self.block(in_features)
        return {"oft_R": (1 if self.block_share else in_features // size, size * (size - 1) // 2)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Q zero."""
        del generator
        return {"oft_R": base.new_zeros(self.shapes(*base.shape)["oft_R"])}

    def rotations(self, stored: Tensor, in_features: int) -> Tensor:
        """Return R_1, …, R_n, (n, b, b), or the one that is shared, (1, b, b)."""
        size = self.block(in_features)
        rows, columns = torch.triu_indices(size, size, 1, device=stored.device)
        upper = stored.new_zeros(len(stored), size, size)
        upper[:, rows, columns] = stored
        Q = upper - upper.mT
        identity = torch.eye(size, dtype=stored.dtype, device=stored.device)
        if self.neumann_terms is None:
            found: Tensor = torch.linalg.solve(identity + Q, identity - Q)  # the two commute
            return found
        result, power = identity + 2 * Q, Q
        highest = self.neumann_terms - 1 if self.neumann_terms != 3 else 3  # of three terms PEFT makes four
        for k in range(2, highest + 1):
            power = power @ Q
            result = result + (power if k == highest else 2 * power)
        return result

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W₀ Rᵀ, with R as one matrix."""
        R = self.rotations(state["oft_R"], base.shape[1])
        n = base.shape[1] // R.shape[-1]
        whole: Tensor = torch.block_diag(*R.expand(n, -1, -1))  # type: ignore[no-untyped-call]
        return base @ whole.T

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Return (x R) W₀ᵀ + b: it is the inputs that are turned, block by block."""
        stored = layer.tensor("oft_R")
        with torch.autocast(x.device.type, enabled=False):
            R = self.rotations(stored, layer.in_features)
            blocks = x.to(R.dtype).reshape(*x.shape[:-1], -1, R.shape[-1])  # (…, n, b)
            turned = torch.einsum("...nk,nkc->...nc", blocks, R.expand(blocks.shape[-2], -1, -1)).flatten(-2)
        return F.linear(turned.to(x.dtype), layer.base, layer.bias)

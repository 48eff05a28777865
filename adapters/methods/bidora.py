"""BiDoRA: DoRA whose magnitudes are trained on other examples than its directions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.method import Bilevel, Layer
from deltaw.adapters.methods.dora import DoRA


@dataclass(frozen=True, kw_only=True)
class BiDoRA(DoRA):
    r"""Bi-level optimisation of DoRA.

        W' = V diag(m / ‖V‖_columns),    V = W₀ + s·B A                              as in DoRA
        min over m of L_val(A*, B*, m),    A*, B* = argmin of L_train(A, B, m) + γ R

    The examples are split: the lower level trains A and B on the one part, the upper level m on the other. R is the
    mean over the layers of ‖DᵀD − I‖_F with D = V / ‖V‖, the directions. A* and B* are taken to be one step of gradient
    descent away, and the product with second derivatives in the hypergradient of m is a finite difference, as in DARTS
    (``deltaw.trainers.hypergradient``). After this search the directions, and whatever else trains beside the adapters,
    start anew and are trained on all examples, with m fixed.

    The layer is DoRA's; what is BiDoRA's is the training, so ``deltaw train`` has to do it. In any other loop this is
    DoRA with a full gradient, unless the loop itself keeps the levels apart.

    Arguments:
        rank, alpha, dropout, rank_stabilized, axis: See ``DoRA``.
        detach_norm: As in ``DoRA``; the authors' code differentiates the norms, which is the default here.
        inner_share: The part of the examples on which A and B are trained in the search; m has the rest.
        search_share: The part of the epochs that the search takes, at least one, and one less than all at most. The
            authors' CoLA run searches for 20,000 steps and trains anew for 30,000.
        magnitude_ratio: The learning rate of m over that of A and B.
        orthogonality: γ; 0 for no R, which costs a product of (in, out) with (out, in) a layer and step.

    Raises:
        OptionError: An option is out of its range.

    Source:
        Qin, Zhang, Xie 2025, "BiDoRA" (arXiv 2410.09758): the abstract, and the authors' code, which the loop and the
        defaults follow (CoLA with RoBERTa-base). The equations' numbers in the paper's text could not be read.
    """

    detach_norm: bool = False
    inner_share: float = 0.8
    search_share: float = 0.4
    magnitude_ratio: float = 1.0
    orthogonality: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("inner_share", "search_share"):
            if not 0 < getattr(self, name) < 1:
                raise OptionError(f"{name} must lie between 0 and 1, not {getattr(self, name)!r}")
        if not 0 < self.magnitude_ratio < math.inf:
            raise OptionError(f"magnitude_ratio must be a number above 0, not {self.magnitude_ratio!r}")
        if not 0 <= self.orthogonality < math.inf:
            raise OptionError(f"orthogonality must be a number of at least 0, not {self.orthogonality!r}")

    @property
    @override
    def name(self) -> str:
        return "bidora"

    @property
    @override
    def title(self) -> str:
        return "BiDoRA"

    @property
    @override
    def formula(self) -> str:
        return "DoRA's, m trained on other examples than A and B"

    @property
    @override
    def source(self) -> str:
        return "Qin et al. 2025"

    @property
    @override
    def look(self) -> tuple[str, str]:
        return "#999933", "D"

    @override
    def rate_factors(self) -> dict[str, float]:
        """That of m, where it is not 1."""
        return {} if self.magnitude_ratio == 1 else {"magnitude": self.magnitude_ratio}

    @property
    @override
    def bilevel(self) -> Bilevel:
        return Bilevel(("magnitude",), self.inner_share, self.search_share)

    @override
    def penalty(self, layers: Sequence[Layer]) -> Tensor | None:
        """γ · mean of ‖DᵀD − I‖_F, by rows where m stands along the rows; a zero vector counts as one off."""
        if not self.orthogonality:
            return None
        found = []
        for layer in layers:
            V = layer.base.to(layer.tensor("lora_A").dtype) + self.product(layer.state())
            D = torch.nn.functional.normalize(V, dim=0 if self.axis == "column" else 1)
            gram = D.T @ D if self.axis == "column" else D @ D.T
            found.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)))
        return self.orthogonality * torch.stack(found).mean()

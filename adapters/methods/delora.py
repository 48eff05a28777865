"""DeLoRA: a low-rank product of unit rank-1 parts, so that its strength and its angles are learnt apart."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.linear.low_rank import kaiming_uniform, low_rank_linear
from deltaw.adapters.method import Layer, RankedMethod, Shape, State

SMALLEST = 1e-4  # no norm of a row of A or a column of B counts as less: PEFT's, for a B that starts at zero


@dataclass(frozen=True, kw_only=True)
class DeLoRA(RankedMethod):
    r"""Decoupled low-rank adaptation.

        ΔW(A, B, λ) = λ / r · B Ξ A diag(ω),    Ξ_kk = 1 / (‖b_k‖ ‖a_k‖),    ω_j = ‖W₀[:, j]‖
        W' = W₀ − ΔW(A₀, B₀, λ₀) + ΔW(A, B, λ)

    b_k is a column of B, a_k a row of A. Each of the r parts b_k a_kᵀ / (‖b_k‖ ‖a_k‖) has norm 1, so ‖B Ξ A‖_F ≤ r and
    λ bounds the strength, whatever the learning rate does to A and B: they only turn.

    A and B start uniform (Kaiming), and a frozen copy of the start, λ₀ with it, is subtracted, so W' = W₀ at the start
    (equation 9). Trainable: r·(out + in) + 1.

    The norm of W₀: equation 8 has a factor ‖W‖ that the paper doesn't define; its Figure 4 is of column norms, and the
    authors' code, like PEFT's, multiplies column j of the product by the norm of column j of W₀. That is ω.

    Arguments:
        rank, dropout: See ``RankedMethod``. As in the authors' code, dropout acts on the frozen copy as well.
        alpha: λ₀, from which λ is trained; ``None`` for r. The paper's Table 9 has 4 and 12 for GLUE, PEFT 15.
        subtract_start: ``True`` as above. ``False`` as in PEFT: B starts at zero, so there is nothing to subtract, and
            no norm of a_k or b_k counts as less than 1e-4, by which the first steps of B are divided.

    Raises:
        OptionError: An option is out of its range.

    Source:
        Bini et al. 2025, "Decoupling Angles and Strength in Low-rank Adaptation", equations 5 to 9 and 15.

    Example:
        >>> from deltaw.adapters import DeLoRA, adapted, inject
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), DeLoRA(rank=2, alpha=4), targets=["0"], seed=0)
        >>> adapted(model)["0"].update().norm().item()
        0.0
    """

    name = "delora"
    title = "DeLoRA"
    formula = "W₀ + λ/r·B Ξ A diag(‖W₀‖ of the columns) − its start, Ξ = 1/(‖b_k‖‖a_k‖)"
    source = "Bini et al. 2025"
    counts = "r·(out + in) + 1"
    look = ("#44AA99", "o")

    subtract_start: bool = True

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A (r, in), B (out, r), λ (1,)."""
        return {"delora_A": (self.rank, in_features), "delora_B": (out_features, self.rank), "delora_lambda": (1,)}

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """The column norms of W₀ (in,); and A and B at the start."""
        first: dict[str, Shape] = {"delora_w_norm": (in_features,)}
        if not self.subtract_start:
            return first
        return first | {"start_A": (self.rank, in_features), "start_B": (out_features, self.rank)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A and B uniform, twice, to train and to subtract; or B zero. λ at λ₀, ω from W₀."""
        A = kaiming_uniform(self.rank, base.shape[1], base, generator)
        state = {"delora_A": A, "delora_lambda": base.new_tensor([self.rank * self.scaling])}
        state["delora_w_norm"] = torch.linalg.vector_norm(base, dim=0)
        if not self.subtract_start:
            return state | {"delora_B": base.new_zeros(base.shape[0], self.rank)}
        B = kaiming_uniform(base.shape[0], self.rank, base, generator)
        return state | {"delora_B": B, "start_A": A.clone(), "start_B": B.clone()}

    def trained(self, state: State) -> tuple[Tensor, Tensor]:
        """Return U (out, r) and V (r, in) of ΔW(A, B, λ) = U V."""
        return self._pair(state["delora_A"], state["delora_B"], state["delora_lambda"], state["delora_w_norm"])

    def subtracted(self, state: State) -> tuple[Tensor, Tensor] | None:
        """Return U and V of ΔW(A₀, B₀, λ₀), or ``None``."""
        if not self.subtract_start:
            return None
        A, B = state["start_A"], state["start_B"]
        return self._pair(A, B, A.new_tensor([self.rank * self.scaling]), state["delora_w_norm"])

    def _pair(self, A: Tensor, B: Tensor, strength: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        lengths = [torch.linalg.vector_norm(B, dim=0), torch.linalg.vector_norm(A, dim=1)]
        b, a = (length.clamp(min=SMALLEST) for length in lengths)
        return B * (strength / self.rank / (a * b)), A * norm

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W₀ + (ΔW − ΔW at the start)."""
        return base + self.update(base, state)

    @override
    def update(self, base: Tensor, state: State) -> Tensor:
        """Return ΔW − ΔW at the start, as two products: at the start their difference is zero to the last bit."""
        del base
        U, V = self.trained(state)
        start = self.subtracted(state)
        return U @ V if start is None else U @ V - start[0] @ start[1]

    @override
    def factors(self, base: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Return U (out, 2r) and V (2r, in), r where nothing is subtracted."""
        del base
        pair = self.trained(state)
        return pair if (start := self.subtracted(state)) is None else _stacked(pair, start)

    @override
    def residual(self, state: State) -> tuple[Tensor, Tensor] | None:
        """Return the factors of the start."""
        return self.subtracted({name: value.double() for name, value in state.items()})

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """LoRA's forward with U and V on the residual; or on W₀, with those of the start beside them."""
        dropout = self.dropout if layer.training else 0.0
        state, base = layer.state(), layer.base
        with torch.autocast(x.device.type, enabled=False):
            U, V = self.trained(state)
            residual = None if dropout else layer.residual
            if residual is not None:
                base = residual
            elif (start := self.subtracted(state)) is not None:
                U, V = _stacked((U, V), start)
        return low_rank_linear(x, base, layer.bias, V, U, 1.0, dropout)


def _stacked(pair: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the factors of the one product less the other."""
    return torch.cat((pair[0], -start[0]), dim=1), torch.cat((pair[1], start[1]))

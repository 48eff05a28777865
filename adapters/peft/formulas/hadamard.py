"""Hadamard and Kronecker products: ΔW is made of products entry by entry, or block by block."""

import torch
from torch import Tensor

from deltaw.adapters.peft.formulas.settings import Settings, Tensors, need


def loha(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW = α/r · (A₁ B₁) ∘ (A₂ B₂). Source: LoHa, FedPara (Hyeon-Woo et al. 2022)."""
    a1, b1, a2, b2 = need(t, s, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return s.number("alpha", 8, "alpha_pattern") / len(b1) * ((a1 @ b1) * (a2 @ b2))


def lokr(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW = α/r · C ⊗ D, each a matrix or a product of two. Source: LoKr (Yeh et al. 2024).

    Where D is the kernel of a 1-D convolution (out, in, k), PEFT 0.21 multiplies C as (1, out, in), so that C's columns
    meet D's places and not its inputs, and reshapes what comes; so is its forward, and so is ΔW here.
    """
    left = t["lokr_w1"] if "lokr_w1" in t else torch.matmul(*need(t, s, "lokr_w1_a", "lokr_w1_b"))
    right = t["lokr_w2"] if "lokr_w2" in t else torch.matmul(*need(t, s, "lokr_w2_a", "lokr_w2_b"))
    rank = s.number("r", 8, "rank_pattern")
    if rank <= 0:
        raise s.wrong(f"r = {rank} is no rank")
    return s.number("alpha", 8, "alpha_pattern") / rank * torch.kron(left, right).reshape(s.shape)


def hira(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW = W₀ ∘ (B A). Source: Huang et al. 2025."""
    A, B = need(t, s, "hira_A", "hira_B")
    return s.base() * (B @ A)


def glora(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW = W₀ ∘ A + B, each a product, a column, a number or nothing. Source: Chavan et al. 2023."""

    def path(name: str) -> Tensor | float:
        if f"{name}.Xd" in t:
            return t[f"{name}.Xd"] @ need(t, s, f"{name}.Xu")[0]
        return t.get(f"{name}.X", 0.0)

    W = s.base()
    return W * path("glora_A") + path("glora_B")

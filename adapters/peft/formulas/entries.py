"""Scales, repeated blocks and single entries of the matrix."""

import torch
from torch import Tensor

from deltaw.adapters.method import Method, ScaledLowRank
from deltaw.adapters.peft.formulas.settings import Settings, Tensors, need


def ia3(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW for W' = diag(l) W₀, or W₀ diag(l) in feed-forward layers. Source: Liu et al. 2022."""
    (scale,) = need(t, s, "ia3_l")
    W = s.base()
    return W * (scale.reshape(-1, 1) if _of_rows(scale, s) else scale.reshape(1, -1)) - W


def scaled_ia3(t: Tensors, s: Settings, base: Tensor) -> ScaledLowRank:
    """Return W' by its scale alone, beside a product of rank 0."""
    (scale,) = need(t, s, "ia3_l")
    rho, gamma = (scale.reshape(-1), None) if _of_rows(scale, s) else (None, scale.reshape(-1))
    U, V = (scale.new_zeros(shape) for shape in ((s.shape[0], 0), (0, s.shape[1])))
    return Method.scaled(base, U, V, rho, gamma)


def _of_rows(scale: Tensor, s: Settings) -> bool:
    """Whether a scale (out, 1) or (1, in) is the first."""
    return scale.shape[-1] == 1 and scale.numel() == s.shape[0]


def miss(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW with ΔW[:, j] = D[j mod r, :]; "mini" repeats D along out; "bat": ΔW = W₀ D + D in r×r blocks.

    Source: Kang, Yin 2024.
    """
    (D,) = need(t, s, "miss_block")
    rows, columns = s.shape
    if s.config.get("init_weights") == "bat":
        size = D.shape[-1]
        if D.ndim != 3 or rows % size or columns % size:
            raise s.wrong(f"blocks {tuple(D.shape)} do not fit {s.shape}")
        W = s.base().reshape(rows // size, size, columns // size, size).permute(2, 0, 1, 3)
        return (W @ D + D).permute(1, 2, 0, 3).reshape(rows, columns)
    if s.config.get("init_weights") == "mini":
        D = D.repeat(1, rows // D.shape[1])
    return D[torch.arange(columns) % len(D)].T


def shira(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW with the entries that were saved, zeros elsewhere. Source: Bhardwaj et al. 2024."""
    values, indices = need(t, s, "shira_weight", "shira_indices")
    rows, columns = indices.long()
    if len(rows) and not (
        0 <= rows.min() <= rows.max() < s.shape[0] and 0 <= columns.min() <= columns.max() < s.shape[1]
    ):
        raise s.wrong("an index lies outside the matrix")
    return values.new_zeros(s.shape).index_put((rows, columns), values, accumulate=True)


def supertuning(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW with the entries that were saved, and α/r · B A where it has a rank. Source: Super, Supra (2026)."""
    (values,) = need(t, s, "supertuning_values")
    if "supertuning_indices" in t:
        indices = t["supertuning_indices"].long()
    else:  # the largest of W₀, or the smallest
        indices = s.base().abs().flatten().topk(len(values), largest=bool(s.config.get("select_top", True))).indices
    if len(indices) and not 0 <= indices.min() <= indices.max() < s.shape[0] * s.shape[1]:
        raise s.wrong("an index lies outside the matrix")
    update = values.new_zeros(s.shape[0] * s.shape[1]).scatter_add(0, indices, values).view(s.shape)
    if "supertuning_lora_A" in t:
        A, B = need(t, s, "supertuning_lora_A", "supertuning_lora_B")
        update = update + s.number("lora_alpha", 16) / len(A) * (B @ A)
    return update

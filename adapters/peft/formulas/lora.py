"""The LoRA family: ΔW = s·B A, its variants, and LoRA in blocks."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltaw.adapters.linear.norms import constant_norms
from deltaw.adapters.method import Method, ScaledFactors, ScaledLowRank
from deltaw.adapters.peft.formulas.settings import Factors, Settings, Tensors, diagonal, need
from deltaw.adapters.peft.names import LEAVES_THE_BASE


def lora(t: Tensors, s: Settings) -> Factors | Tensor:
    """Return ΔW = s·B A with s = α/r, or α/√r (rsLoRA).

    DoRA: ΔW = diag(m / ‖W_i + s·B A‖_i) (W + s·B A) − W₀, norms of rows. A start that takes its part out of the base
    (PiSSA, OLoRA, CorDA, …) has W = W₀ − s·B₀ A₀ in the place of W₀. KaSA: W is W₀ less its r smallest singular
    components, and A carries a diagonal. BD-LoRA: A or B is block-diagonal, and only its blocks are stored. QA-LoRA: A
    acts on means of g inputs that follow each other, times in/g.

    Source: Hu et al. 2021; Kalajdzievski 2023; Liu et al. 2024; Meng et al. 2024; Büyükakyüz 2024; Yang et al. 2024;
    Wang et al. 2024; Xu et al. 2024.
    """
    U, V = _product(t, s)
    if not _normed(t, s):
        return U, V
    (magnitude,) = need(t, s, "lora_magnitude_vector")
    W = s.base()
    moved = W + U @ V
    norms: Tensor = torch.linalg.vector_norm(moved, dim=1)
    return moved * (magnitude.reshape(-1) / norms)[:, None] - W


def scaled_lora(t: Tensors, s: Settings, base: Tensor) -> ScaledLowRank | None:
    """Return W' of DoRA as diag(m / ‖W_i‖) (W₀ + U V), W = W₀ + U V; of all else ``None``, as ΔW = U V says it."""
    if not _normed(t, s):
        return None
    (magnitude,) = need(t, s, "lora_magnitude_vector")
    U, V = _product(t, s)
    norms = constant_norms(base, V.contiguous(), U.contiguous(), 1.0, "row")
    return Method.scaled(base, U, V, rho=magnitude.reshape(-1) / norms)


def _normed(t: Tensors, s: Settings) -> bool:
    """Whether it is DoRA."""
    A, _ = need(t, s, "lora_A", "lora_B")
    return bool(s.config.get("use_dora")) and len(A) > 0 and not s.config.get("kasa_config")


def _product(t: Tensors, s: Settings) -> Factors:
    """Return U and V, the product and what the start took out of the base; DoRA norms their rows beside W₀."""
    plain = plain_lora(t, s)
    if plain is not None:
        return plain.scaling * plain.U, plain.V
    A, B = need(t, s, "lora_A", "lora_B")
    rank, scaling = len(A), _scaling(t, s)
    if rank == 0:
        return B, A
    blocks = s.config.get("use_bdlora")
    if isinstance(blocks, dict):
        A, B = _blocks(A, B, s, blocks)
    if s.config.get("use_qalora"):
        size = s.whole("qalora_group_size", 16)
        if size == 0 or A.shape[1] * size != s.shape[1]:
            raise s.wrong(f"qalora_group_size = {size} does not fit {A.shape[1]} groups of {s.shape[1]} inputs")
        A = A.repeat_interleave(size, dim=1) * (A.shape[1] / size)
    if s.config.get("kasa_config"):
        (diagonal,) = need(t, s, "lora_diag")
        P, S, Q = torch.linalg.svd(s.base(), full_matrices=False)
        dropped = P[:, -rank:] * S[-rank:], Q[-rank:]
        return torch.cat([scaling * B * diagonal, -dropped[0]], 1), torch.cat([A, dropped[1]])
    U, V = scaling * B, A
    taken = _taken(s, rank, scaling)
    if taken is not None:
        U, V = torch.cat([U, -taken[0]], 1), torch.cat([V, taken[1]])
    return U, V


def plain_lora(t: Tensors, s: Settings) -> ScaledFactors | None:
    """Return B, A and s, or ``None`` where an option makes more of them than ΔW = s·B A."""
    A, B = need(t, s, "lora_A", "lora_B")
    changed = any(s.config.get(key) for key in ("use_dora", "use_bdlora", "use_qalora", "kasa_config"))
    if changed or s.config.get("init_lora_weights", True) not in LEAVES_THE_BASE or len(A) == 0:
        return None
    return ScaledFactors(B, A, _scaling(t, s))


def _scaling(t: Tensors, s: Settings) -> float:
    """s = α/r, or α/√r (rsLoRA); 0 for rank 0."""
    alpha, rank = s.number("lora_alpha", 8, "alpha_pattern"), len(t["lora_A"])
    return alpha / (math.sqrt(rank) if s.config.get("use_rslora") else rank) if rank else 0.0


def _taken(s: Settings, rank: int, scaling: float) -> Factors | None:
    """The part of the base that the start took out, s·B₀ A₀ as U V; ``None`` where it left the base as it was."""
    start = s.config.get("init_lora_weights", True)
    if start in (*LEAVES_THE_BASE, "kasa"):
        return None
    known = s.start()
    if known is not None:
        A, B = need(known, s, "lora_A", "lora_B")
        return scaling * B, A
    if start == "pissa":
        P, S, Q = torch.linalg.svd(s.base(), full_matrices=False)
        return P[:, :rank] * S[:rank], Q[:rank]
    if start == "olora":
        Q, R = torch.linalg.qr(s.base())
        return scaling * Q[:, :rank], R[:rank]
    raise s.wrong(
        f"init_lora_weights = {start!r:.40} took a part out of the base that follows from data or chance; save the "
        "adapter with PEFT's save_pretrained(folder, path_initial_model_for_weight_conversion=…), or keep a "
        "checkpoint-0 from before training"
    )


def _blocks(A: Tensor, B: Tensor, s: Settings, blocks: Mapping[str, Any]) -> Factors:
    """A and B in full, where one of them is stored as the blocks of its diagonal."""
    count = blocks.get("nblocks", 1)
    if type(count) is not int or count < 1:
        raise s.wrong(f"nblocks = {count!r:.40} is no count")

    def named(key: str) -> bool:
        return any(isinstance(part, str) and part in s.module for part in blocks.get(key) or [])

    def whole(stored: Tensor) -> Tensor:
        if len(stored) % count:
            raise s.wrong(f"{len(stored)} rows are not {count} blocks")
        return diagonal(stored.chunk(count, 0))

    return whole(A) if named("target_modules_bd_a") else A, whole(B) if named("target_modules_bd_b") else B


def adalora(t: Tensors, s: Settings) -> Factors:
    """Return ΔW = α / (r₀ + 1e-5) · B diag(E) A, r₀ the rank at the start; no α: the rank now.

    Source: Zhang et al. 2023.
    """
    A, B, E = need(t, s, "lora_A", "lora_B", "lora_E")
    alpha = s.number("lora_alpha", 8)
    scaling = (alpha if alpha > 0 else float(len(A))) / (s.number("init_r", 12) + 1e-5)
    return scaling * B, E.reshape(-1, 1) * A


def delora(t: Tensors, s: Settings) -> Factors:
    """Return ΔW = B diag(λ / (r ‖b_k‖ ‖a_k‖)) A diag(‖w_j‖), norms not under 1e-4. Source: Bini et al. 2025."""
    A, B, strength, norm = need(t, s, "delora_A", "delora_B", "delora_lambda", "delora_w_norm")
    lengths = A.norm(dim=1).clamp(min=1e-4) * B.norm(dim=0).clamp(min=1e-4)
    return B * (strength / len(A) / lengths), A * norm


def gralora(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW = α/(r + r') · (block ji is B_ji A_ij, each a k-th of the ranks of B_j and A_i, + B' A').

    Source: Jung et al. 2025.
    """
    A, B = need(t, s, "gralora_A", "gralora_B")  # (k, in/k, r), (k, r, out/k)
    k, _, rank = A.shape
    if rank % k:
        raise s.wrong(f"gralora_k = {k} does not divide r = {rank}")
    parts_A = A.reshape(k, A.shape[1], k, rank // k)  # (i, in/k, j, r/k)
    parts_B = B.reshape(k, k, rank // k, B.shape[2])  # (j, i, r/k, out/k)
    update = torch.einsum("ipjr,jiro->joip", parts_A, parts_B).flatten(2).flatten(0, 1)
    hybrid = 0
    if "gralora_A_general" in t:
        general_A, general_B = need(t, s, "gralora_A_general", "gralora_B_general")
        update, hybrid = update + general_B @ general_A, len(general_A)
    return s.number("alpha", 64) / (rank + hybrid) * update


def poly(t: Tensors, s: Settings) -> Factors:
    """Return ΔW = (1/r) B A, each block of inputs and of outputs a mean of skills with weights σ(z) / Σ σ(z).

    One task only. Source: Ponti et al. 2022, in PEFT's evaluation mode.
    """
    A, B, logits = need(t, s, "poly_lora_A", "poly_lora_B", "poly_router.module_logits")
    splits, skills, _, rank = A.shape  # (splits, skills, in / splits, r), (splits, skills, r, out / splits)
    if len(logits) != 1:
        raise s.wrong(f"{len(logits)} tasks were trained, so there is no one W'")
    weights = torch.sigmoid(logits).view(splits, skills)
    weights = weights / (weights.sum(1, keepdim=True) + 1e-12)
    V = torch.einsum("qs,qsdr->rqd", weights, A).flatten(1)
    U = torch.einsum("qs,qsrd->qdr", weights, B).flatten(0, 1)
    return U / rank, V

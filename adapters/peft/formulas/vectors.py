"""Vectors over matrices that layers share: ΔW = diag(b) B diag(d) A and its like."""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.adapters.peft.formulas.settings import Factors, Settings, Tensors, need


def vera(t: Tensors, s: Settings) -> Factors:
    """Return ΔW = diag(b) B diag(d) A, A and B shared by all layers. Source: Kopiczko et al. 2024."""
    d, b = need(t, s, "vera_lambda_d", "vera_lambda_b")
    A, B = _projections(s, "vera", len(d), len(d))
    return b[:, None] * B[: s.shape[0]].to(b.dtype), d[:, None] * A[:, : s.shape[1]].to(d.dtype)


def pvera(t: Tensors, s: Settings) -> Factors:
    """Return ΔW as VeRA's, with the first half of d and A, which is the mean.

    Source: PVeRA (2025), in PEFT's evaluation mode.
    """
    d, b = need(t, s, "pvera_lambda_d", "pvera_lambda_b")
    half = len(d) // 2
    A, B = _projections(s, "pvera", len(d), half)
    return b[:, None] * B[: s.shape[0]].to(b.dtype), d[:half, None] * A[:half, : s.shape[1]].to(d.dtype)


def _projections(s: Settings, name: str, rows: int, columns: int) -> Factors:
    """A (rows, in) and B (out, columns), as wide as any layer; where they were not saved, drawn as PEFT draws them."""
    if s.config.get("save_projection", True):
        return s.shared(f"{name}_A"), s.shared(f"{name}_B")
    out, into = (max(shape[side] for shape in s.shapes.values()) for side in (0, 1))
    if not 1 <= columns <= rows <= 64 * max(out, into):
        raise s.wrong(f"a rank of {columns} does not fit {s.shape}")
    generator = torch.Generator().manual_seed(s.whole("projection_prng_key", 0))

    def drawn(*shape: int) -> Tensor:
        """Uniform, of variance 2 / columns."""
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
        return torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)

    return drawn(rows, into), drawn(out, columns)


def randlora(t: Tensors, s: Settings) -> Factors:
    """Return ΔW = α/r · Σ_j B_j diag(λ_j) A diag(γ_j), with the roles of out and in by which is smaller.

    Source: Albert et al. 2025; the order of the bases is PEFT's.
    """
    weights, gamma = need(t, s, "randlora_lambda", "randlora_gamma")  # (r, n), (n, smaller)
    A, B = s.shared("randlora_A"), s.shared("randlora_B")
    smaller, larger, n = min(s.shape), max(s.shape), weights.shape[1]
    scaled = A[:, :, :smaller] * weights[:, :, None] * gamma  # (r, n, smaller)
    first, second = B[:larger, :n].flatten(1), scaled.flatten(end_dim=1)  # (larger, n·r), (r·n, smaller)
    scaling = s.number("randlora_alpha", 640) / len(A)
    if smaller == s.shape[1]:
        return scaling * first, second
    return scaling * second.T, first.T


def vblora(t: Tensors, s: Settings) -> Factors:
    """Return ΔW = B A, each put together from vectors of a bank, k of them weighted by softmax.

    Source: Li et al. 2024.
    """
    bank = s.shared("vblora_vector_bank")
    top = s.whole("topk", 2)

    def tiles(name: str) -> Tensor:
        if f"{name}_topk_indices" in t:  # saved for inference only: the last weight is what is left of one
            indices, weights = t[f"{name}_topk_indices"].long(), t[f"{name}_topk_weights"]
            weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
        else:
            (logits,) = need(t, s, name)
            values, indices = logits.topk(top, dim=-1)
            weights = F.softmax(values, dim=-1)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(bank):
            raise s.wrong("an index lies outside the vector bank")
        return (weights.unsqueeze(-1) * bank[indices]).sum(-2)

    A, B = tiles("vblora_logits_A"), tiles("vblora_logits_B")  # (r, tiles, length), (tiles, r, length)
    return B.transpose(1, 2).flatten(0, 1), A.flatten(1)


def unilora(t: Tensors, s: Settings) -> Factors:
    """Return ΔW = B A, their entries taken from one vector θ by indices, and scaled. Source: Uni-LoRA (2025).

    Where the indices were not saved, they are drawn again for all layers in the model's order, A before B, and an entry
    of θ that is taken n times has the scale 1/√n.
    """
    theta = s.shared("unilora_theta_d")
    if "unilora_indices_A" in t:
        left, right, scale_A, scale_B = need(
            t, s, "unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"
        )
        return _picked(theta, right, s) * scale_B, _picked(theta, left, s) * scale_A
    rank, length = s.whole("r", 4), s.whole("theta_d_length", 256)
    if not 1 <= rank <= max(s.shape) or length != len(theta):
        raise s.wrong(f"r = {rank} and theta_d_length = {length} do not fit {s.shape} and a vector of {len(theta)}")
    sizes = [rank * sum(s.shapes[module]) for module in s.order]
    indices, counts = drawn_indices(sum(sizes), length, s.whole("proj_seed", 42))
    rows, columns = s.shape
    start = sum(sizes[: s.number_in_model()])
    left = indices[start : start + rank * columns].view(rank, columns)
    right = indices[start + rank * columns :][: rows * rank].view(rows, rank)
    picked = theta * counts.float().rsqrt().nan_to_num(posinf=0.0).to(theta.dtype)  # the scale is PEFT's, in float32
    return picked[right], picked[left]


@lru_cache(maxsize=1)
def drawn_indices(total: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return Uni-LoRA's indices as PEFT draws them, each equally often but for one, and how often each is there.

    Arguments:
        total: How many.
        length: Of the vector that they point into.
        seed: NumPy's.
    """
    generator = np.random.default_rng(seed)
    indices = np.repeat(np.arange(length), total // length)
    if total % length:
        indices = np.concatenate([indices, generator.choice(length, size=total % length, replace=False)])
    generator.shuffle(indices)
    found = torch.from_numpy(indices).long()
    return found, torch.bincount(found, minlength=length)


def _picked(theta: Tensor, indices: Tensor, s: Settings) -> Tensor:
    indices = indices.long()
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(theta):
        raise s.wrong("an index lies outside the shared vector")
    return theta[indices]


def tinylora(t: Tensors, s: Settings) -> Factors:
    """Return ΔW = B (Σ_k v_k P_k) A; v may be shared by layers that follow each other. Source: TinyLoRA (2026).

    Where the projections P were not saved, they are drawn again: normal, of variance 1/r, seeded by the layer's number.
    """
    A, B = need(t, s, "tinylora_A", "tinylora_B")
    groups = max(1, round(s.layers * (1 - s.number("weight_tying", 0.0))))
    group = 0
    if groups > 1:
        group = min(s.number_in_model() // max(1, s.layers // groups), groups - 1)
    v, rank = s.shared(f"tinylora_v.{group}"), len(A)
    if "tinylora_P" in t:
        P = t["tinylora_P"]
    elif v.ndim != 1 or not 1 <= rank <= min(s.shape) or len(v) * rank**2 > 64 * s.shape[0] * s.shape[1]:
        raise s.wrong(f"{tuple(v.shape)} projections of rank {rank} do not fit {s.shape}")
    else:
        generator = torch.Generator().manual_seed(s.whole("projection_seed", 42) + s.number_in_model())
        size = (len(v), rank, rank)
        P = torch.normal(0.0, 1 / math.sqrt(rank), size, generator=generator, dtype=torch.float32).to(v.dtype)
    return B @ torch.einsum("i,ijk->jk", v, P), A

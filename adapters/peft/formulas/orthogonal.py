"""Rotations: W' = W₀ R with an R that is orthogonal, or nearly."""

import math

import torch
from torch import Tensor

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.formulas.settings import Factors, Settings, Tensors, diagonal, need


def oft(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW for W' = W₀ Rᵀ, R block-diagonal, each block the Cayley transform of a skew matrix Q.

    (I + Q)⁻¹ (I − Q), or its Neumann series, which is PEFT's series I + 2Q + 2Q² + … + Qᵏ of the transform of −Q.

    Source: Qiu et al. 2023, 2025.
    """
    (stored,) = need(t, s, "oft_R")  # (blocks, b (b − 1) / 2)
    size = (1 + math.isqrt(1 + 8 * stored.shape[1])) // 2
    if size < 1 or s.shape[1] % size or len(stored) not in (1, s.shape[1] // size):
        raise s.wrong(f"blocks of {size} do not fit {s.shape[1]} inputs")
    if s.config.get("coft"):
        stored = _near_zero(stored, size, s.number("eps", 6e-5))
    skew = _skew(stored, size)
    identity = torch.eye(size, dtype=skew.dtype)
    if s.config.get("use_cayley_neumann", True):
        R = _neumann(skew, s.whole("num_cayley_neumann_terms", 5))
    else:
        R = torch.linalg.solve(identity + skew, identity - skew, left=False)
    W = s.base()
    # x R, block by block: row vectors x turn, so W' = W₀ Rᵀ.
    turned = torch.einsum("onk,nck->onc", W.reshape(len(W), -1, size), R.expand(s.shape[1] // size, -1, -1))
    return turned.flatten(1) - W


def boft(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW for W' = diag(s) W₀ Rᵀ, R a product of butterfly factors, each block-diagonal after a permutation.

    Source: Liu et al. 2024.
    """
    R, scale = need(t, s, "boft_R", "boft_s")  # (factors, blocks, b, b), (out, 1)
    factors, blocks, size, _ = R.shape
    if blocks * size != s.shape[1]:
        raise s.wrong(f"{blocks} blocks of {size} do not fit {s.shape[1]} inputs")
    skew = (R - R.mT) / 2
    identity = torch.eye(size, dtype=R.dtype)
    turns = torch.linalg.solve(identity + skew, identity - skew, left=False)
    whole = torch.eye(s.shape[1], dtype=R.dtype)
    for k in range(factors):
        order = _butterfly(s.shape[1], blocks // 2**k, size // 2, factors - 1)
        P = torch.eye(s.shape[1], dtype=R.dtype)[order]
        whole = P @ diagonal(turns[k].unbind()) @ P.T @ whole
    W = s.base()
    return scale.reshape(-1, 1) * (W @ whole.T) - W


def hra(t: Tensors, s: Settings) -> Factors:
    """Return ΔW for W' = W₀ ∏_k (I − 2 u_k u_kᵀ), with unit u, made orthogonal by Gram and Schmidt if asked.

    Source: Yuan et al. 2024.
    """
    (vectors,) = need(t, s, "hra_u")  # (in, r)
    W = s.base()
    units = vectors / vectors.norm(dim=0)
    if s.config.get("apply_GS"):
        for k in range(1, units.shape[1]):
            left = units[:, k]
            for j in range(k):
                left = left - (units[:, j] @ left) * units[:, j]
            units[:, k] = left / left.norm()
    # ∏ (I − 2 u uᵀ) = I − Σ_k c_k u_kᵀ, where c_k is 2 u_k turned by the reflections before it.
    turned = W
    columns = []
    for k in range(units.shape[1]):
        columns.append(2 * (turned @ units[:, k]))
        turned = turned - torch.outer(columns[-1], units[:, k])
    return -torch.stack(columns, 1), units.T


def road(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW for W' = R W₀, R rotating and scaling pairs of outputs within groups.

    Source: RoAd (Liao, Monz 2024), equation 4.
    """
    theta, alpha = need(t, s, "road_theta", "road_alpha")
    group, variant = s.whole("group_size", 64), s.config.get("variant", "road_1")
    if group < 2 or group % 2 or s.shape[0] % group:
        raise s.wrong(f"group_size = {group} does not fit {s.shape[0]} outputs")
    if variant == "road_1":
        theta, alpha = (v.reshape(-1, group // 2).repeat_interleave(2, dim=0).flatten() for v in (theta, alpha))
        first, second = alpha * theta.cos(), alpha * theta.sin()
    elif variant == "road_2":
        first, second = alpha * theta.cos(), alpha * theta.sin()
    elif variant == "road_4":
        angles, scales = theta.reshape(-1, 2, group), alpha.reshape(-1, 2, group)
        first = (scales[:, 0] * angles[:, 0].cos()).flatten()
        second = (scales[:, 1] * angles[:, 1].sin()).flatten()
    else:
        raise s.wrong(f"variant = {variant!r:.40} is none of road_1, road_2, road_4")
    W = s.base()
    halves = W.reshape(-1, 2, group // 2, s.shape[1])
    swapped = torch.stack((-halves[:, 1], halves[:, 0]), 1).reshape(s.shape)
    return first[:, None] * W + second[:, None] * swapped - W


def psoft(t: Tensors, s: Settings) -> Factors:
    """Return ΔW = s·B (R − I) A, A and B the r first singular vectors of W₀, R near orthogonal.

    Source: PSOFT (2026).
    """
    (stored,) = need(t, s, "psoft_R")
    if s.config.get("psoft_svd", "full") != "full":
        raise s.wrong("psoft_svd = 'lowrank' starts from chance; merge it with PEFT")
    orthogonal = s.config.get("psoft_orth", True)
    size = (1 + math.isqrt(1 + 8 * len(stored))) // 2 if orthogonal else len(stored)
    identity = torch.eye(size, dtype=stored.dtype)
    R = stored
    if orthogonal:
        skew = _skew(stored[None], size)[0]
        if s.config.get("use_cayley_neumann", False):
            limit, norm = s.config.get("cayley_neumann_eps"), torch.linalg.matrix_norm(skew)
            if isinstance(limit, float) and norm > limit:
                skew = skew * (limit / (norm + 1e-12))
            R = _neumann(skew, s.whole("num_cayley_neumann_terms", 5))
        else:
            R = torch.linalg.solve(identity - skew, identity + skew, left=False)
    if "psoft_R.vector_b" in t:
        R = t["psoft_R.vector_b"][:, None] * R
    if "psoft_R.vector_a" in t:
        R = R * t["psoft_R.vector_a"]
    P, S, Q = torch.linalg.svd(s.base(), full_matrices=False)
    if s.config.get("ab_svd_init", "psoft_init") == "psoft_init":
        return (P[:, :size] * S[:size]) @ (R - identity), Q[:size]
    root = S[:size].sqrt()
    return (P[:, :size] * root) @ (R - identity), root[:, None] * Q[:size]


def _skew(stored: Tensor, size: int) -> Tensor:
    """Skew matrices (n, size, size) from their upper triangles (n, size (size − 1) / 2)."""
    rows, columns = torch.triu_indices(size, size, 1)
    if stored.shape[1] != len(rows):
        raise RecordError(f"{stored.shape[1]} numbers are no triangle of a skew matrix")
    Q = stored.new_zeros(len(stored), size, size)
    Q[:, rows, columns] = stored
    return Q - Q.mT


def _neumann(Q: Tensor, terms: int) -> Tensor:
    """I + 2Q + 2Q² + … + Q^(terms − 1): the Cayley transform's series, its last term once."""
    if terms > 1000:
        raise RecordError(f"num_cayley_neumann_terms = {terms}; at most 1000 are summed")
    R = torch.eye(Q.shape[-1], dtype=Q.dtype).expand_as(Q)
    if terms > 1:
        R = R + 2 * Q
    if terms > 2:
        power = Q @ Q
        R = R + 2 * power
        for _ in range(3, terms - 1):
            power = power @ Q
            R = R + 2 * power
        R = R + power @ Q
    return R


def _near_zero(stored: Tensor, size: int, eps: float) -> Tensor:
    """Constrained OFT: every skew matrix at most eps / √blocks long."""
    limit = eps / math.sqrt(len(stored))
    norm = math.sqrt(2) * stored.norm(dim=1, keepdim=True)
    del size
    return torch.where(norm <= limit, stored, limit * stored / norm)


def _butterfly(n: int, blocks: int, half: int, factors: int) -> Tensor:
    """The order in which a butterfly factor sees its inputs: within each block, even parts first."""
    if factors == 0:
        return torch.arange(n)
    size = n // max(blocks, 1)
    if half < 1 or size % half:
        raise RecordError(f"a butterfly of {blocks} blocks does not fit {n} inputs")
    parts = torch.arange(size // half)
    order = torch.cat([parts[::2], parts[1::2]])
    within = (order[:, None] * half + torch.arange(half)).flatten()
    return (torch.arange(0, n, size)[:, None] + within).flatten()

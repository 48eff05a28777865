"""What PEFT's adapters add to a weight: ΔW = W' − W₀ from their tensors, by formulas of our own.

Every formula is held by a test to the forward of PEFT's own layer, of version 0.21. PEFT's ``get_delta_weight`` is not
W' − W₀ for DoRA, HiRA, PiSSA and others; these are. W₀ and ΔW are [out, in] for every layer, Conv1D too.

A formula takes the layer's tensors ``t`` under PEFT's names, and ``s``, which knows the options, the shape, the tensors
that layers share, and W₀. It returns U (out, r) and V (r, in) with ΔW = U V, or else ΔW.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.targets import fits

Tensors = Mapping[str, Tensor]
Factors = tuple[Tensor, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Settings:
    """What a formula knows beside the layer's own tensors.

    Arguments:
        where: For messages.
        module: The layer's name.
        config: ``adapter_config.json``.
        shape: (out, in).
        base: Returns W₀ (out, in) in the dtype of the computation, or raises where it was not given.
        shared: Returns a tensor that layers share.
        start: Returns the layer's tensors before training, for a start that cannot be made again; or ``None``.
        layers: How many layers are adapted.
        order: Their names in the model's order, where it is known.
        shapes: (out, in) of each of them.
        bias: Returns the layer's bias, ``None`` where it has none.
    """

    where: str
    module: str
    config: Mapping[str, Any]
    shape: tuple[int, int]
    base: Callable[[], Tensor]
    shared: Callable[[str], Tensor]
    start: Callable[[], Tensors | None] = lambda: None
    layers: int = 0
    order: list[str] = field(default_factory=list)
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    bias: Callable[[], Tensor | None] = lambda: None

    def number(self, key: str, default: float, patterns: str = "") -> float:
        """Return an option that is a number, for this layer where a pattern names it."""
        value = self.config.get(key, default)
        by_pattern = self.config.get(patterns) if patterns else None
        if isinstance(by_pattern, dict):
            value = next(
                (v for pattern, v in by_pattern.items() if fits(pattern, self.module, self.where, patterns)), value
            )
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(f"{key} = {value!r:.40} is no number")
        return value

    def whole(self, key: str, default: int, patterns: str = "") -> int:
        """Return an option that is a whole number of at least 0."""
        value = self.number(key, default, patterns)
        if value != int(value) or value < 0 or value > 2**40:
            raise self.wrong(f"{key} = {value!r:.40} is no count")
        return int(value)

    def number_in_model(self) -> int:
        """Return which of the adapted layers it is, in the model's order."""
        if self.module not in self.order or len(self.order) != self.layers:
            raise self.wrong("this type numbers the layers in the model's order; give base as the model itself")
        return self.order.index(self.module)

    def wrong(self, what: str) -> RecordError:
        """Return the error that says what of this layer cannot be."""
        return RecordError(f"{self.where}: {self.module}: {what}")


def need(t: Tensors, s: Settings, *names: str) -> list[Tensor]:
    """Return tensors of a layer, or raise where one is missing."""
    for name in names:
        if name not in t:
            raise s.wrong(f"lacks the tensor {name!r}; the file is damaged or of another version of PEFT")
    return [t[name] for name in names]


# --- products of low rank -------------------------------------------------------------------------------------------


def lora(t: Tensors, s: Settings) -> Factors | Tensor:
    """ΔW = s·B A with s = α/r, or α/√r (rsLoRA).

    DoRA: ΔW = diag(m / ‖W_i + s·B A‖_i) (W + s·B A) − W₀, norms of rows. A start that takes its part out of the base
    (PiSSA, OLoRA, CorDA, …) has W = W₀ − s·B₀ A₀ in the place of W₀. KaSA: W is W₀ less its r smallest singular
    components, and A carries a diagonal. BD-LoRA: A or B is block-diagonal, and only its blocks are stored. QA-LoRA: A
    acts on means of g inputs that follow each other, times in/g.

    Source: Hu et al. 2021; Kalajdzievski 2023; Liu et al. 2024; Meng et al. 2024; Büyükakyüz 2024; Yang et al. 2024;
    Wang et al. 2024; Xu et al. 2024.
    """
    A, B = need(t, s, "lora_A", "lora_B")
    rank = len(A)
    alpha = s.number("lora_alpha", 8, "alpha_pattern")
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
    scaling = alpha / math.sqrt(rank) if s.config.get("use_rslora") else alpha / rank
    if s.config.get("kasa_config"):
        (diagonal,) = need(t, s, "lora_diag")
        P, S, Q = torch.linalg.svd(s.base(), full_matrices=False)
        dropped = P[:, -rank:] * S[-rank:], Q[-rank:]
        return torch.cat([scaling * B * diagonal, -dropped[0]], 1), torch.cat([A, dropped[1]])
    U, V = scaling * B, A
    taken = _taken(s, rank, scaling)
    if taken is not None:
        U, V = torch.cat([U, -taken[0]], 1), torch.cat([V, taken[1]])
    if not s.config.get("use_dora"):
        return U, V
    (magnitude,) = need(t, s, "lora_magnitude_vector")
    W = s.base()
    moved = W + U @ V
    norms: Tensor = torch.linalg.vector_norm(moved, dim=1)
    return moved * (magnitude.reshape(-1) / norms)[:, None] - W


def _taken(s: Settings, rank: int, scaling: float) -> Factors | None:
    """What the start took out of the base, s·B₀ A₀ as U V; ``None`` where it left the base as it was."""
    start = s.config.get("init_lora_weights", True)
    if start in (True, False, None, "gaussian", "eva", "orthogonal", "mica", "kasa"):
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
        return _diagonal(stored.chunk(count, 0))

    return whole(A) if named("target_modules_bd_a") else A, whole(B) if named("target_modules_bd_b") else B


def adalora(t: Tensors, s: Settings) -> Factors:
    """ΔW = α / (r₀ + 1e-5) · B diag(E) A, r₀ the rank at the start; no α: the rank now. Source: Zhang et al. 2023."""
    A, B, E = need(t, s, "lora_A", "lora_B", "lora_E")
    alpha = s.number("lora_alpha", 8)
    scaling = (alpha if alpha > 0 else float(len(A))) / (s.number("init_r", 12) + 1e-5)
    return scaling * B, E.reshape(-1, 1) * A


def loha(t: Tensors, s: Settings) -> Tensor:
    """ΔW = α/r · (A₁ B₁) ∘ (A₂ B₂). Source: LoHa, FedPara (Hyeon-Woo et al. 2022)."""
    a1, b1, a2, b2 = need(t, s, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return s.number("alpha", 8, "alpha_pattern") / len(b1) * ((a1 @ b1) * (a2 @ b2))


def lokr(t: Tensors, s: Settings) -> Tensor:
    """ΔW = α/r · C ⊗ D, each a matrix or a product of two. Source: LoKr (Yeh et al. 2024)."""
    left = t["lokr_w1"] if "lokr_w1" in t else torch.matmul(*need(t, s, "lokr_w1_a", "lokr_w1_b"))
    right = t["lokr_w2"] if "lokr_w2" in t else torch.matmul(*need(t, s, "lokr_w2_a", "lokr_w2_b"))
    rank = s.number("r", 8, "rank_pattern")
    if rank <= 0:
        raise s.wrong(f"r = {rank} is no rank")
    return s.number("alpha", 8, "alpha_pattern") / rank * torch.kron(left, right)


def vera(t: Tensors, s: Settings) -> Factors:
    """ΔW = diag(b) B diag(d) A, A and B shared by all layers. Source: Kopiczko et al. 2024."""
    d, b = need(t, s, "vera_lambda_d", "vera_lambda_b")
    A, B = _projections(s, "vera", len(d), len(d))
    return b[:, None] * B[: s.shape[0]].to(b.dtype), d[:, None] * A[:, : s.shape[1]].to(d.dtype)


def pvera(t: Tensors, s: Settings) -> Factors:
    """As VeRA, with the first half of d and A, which is the mean. Source: PVeRA (2025), in PEFT's evaluation mode."""
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
    """ΔW = α/r · Σ_j B_j diag(λ_j) A diag(γ_j), with the roles of out and in by which is smaller.

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


def hira(t: Tensors, s: Settings) -> Tensor:
    """ΔW = W₀ ∘ (B A). Source: Huang et al. 2025."""
    A, B = need(t, s, "hira_A", "hira_B")
    return s.base() * (B @ A)


def delora(t: Tensors, s: Settings) -> Factors:
    """ΔW = B diag(λ / (r ‖b_k‖ ‖a_k‖)) A diag(‖w_j‖), norms not under 1e-4. Source: Bini et al. 2025."""
    A, B, strength, norm = need(t, s, "delora_A", "delora_B", "delora_lambda", "delora_w_norm")
    lengths = A.norm(dim=1).clamp(min=1e-4) * B.norm(dim=0).clamp(min=1e-4)
    return B * (strength / len(A) / lengths), A * norm


def gralora(t: Tensors, s: Settings) -> Tensor:
    """ΔW = α/(r + r') · (block ji is B_ji A_ij, each a k-th of the ranks of B_j and A_i, + B' A').

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


def vblora(t: Tensors, s: Settings) -> Factors:
    """ΔW = B A, each put together from vectors of a bank, k of them weighted by softmax. Source: Li et al. 2024."""
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
    """ΔW = B A, their entries taken from one vector θ by indices, and scaled. Source: Uni-LoRA (2025).

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


def tinylora(t: Tensors, s: Settings) -> Factors:
    """ΔW = B (Σ_k v_k P_k) A; v may be shared by layers that follow each other. Source: TinyLoRA (2026).

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


def poly(t: Tensors, s: Settings) -> Factors:
    """ΔW = (1/r) B A, each block of inputs and of outputs a mean of skills with weights σ(z) / Σ σ(z). One task only.

    Source: Ponti et al. 2022, in PEFT's evaluation mode.
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


# --- rotations: W' = W₀ R -------------------------------------------------------------------------------------------


def oft(t: Tensors, s: Settings) -> Tensor:
    """W' = W₀ Rᵀ, R block-diagonal, each block the Cayley transform of a skew matrix Q, or its Neumann series.

    (I + Q)⁻¹ (I − Q), and PEFT's series I + 2Q + 2Q² + … + Qᵏ of the transform of −Q. Source: Qiu et al. 2023, 2025.
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
    """W' = diag(s) W₀ Rᵀ, R a product of butterfly factors, each block-diagonal after a permutation.

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
        whole = P @ _diagonal(turns[k].unbind()) @ P.T @ whole
    W = s.base()
    return scale.reshape(-1, 1) * (W @ whole.T) - W


def hra(t: Tensors, s: Settings) -> Factors:
    """W' = W₀ ∏_k (I − 2 u_k u_kᵀ), with unit u, made orthogonal by Gram and Schmidt if asked.

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
    """W' = R W₀, R rotating and scaling pairs of outputs within groups. Source: RoAd (Liao, Monz 2024), equation 4."""
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
    """ΔW = s·B (R − I) A, A and B the r first singular vectors of W₀, R near orthogonal. Source: PSOFT (2026)."""
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


# --- scales, blocks, sparse entries, transforms -----------------------------------------------------------------------


def ia3(t: Tensors, s: Settings) -> Tensor:
    """W' = diag(l) W₀, or W₀ diag(l) in feed-forward layers. Source: Liu et al. 2022."""
    (scale,) = need(t, s, "ia3_l")  # (out, 1) or (1, in)
    W = s.base()
    return (
        W * (scale.reshape(-1, 1) if scale.shape[-1] == 1 and scale.numel() == s.shape[0] else scale.reshape(1, -1)) - W
    )


def miss(t: Tensors, s: Settings) -> Tensor:
    """ΔW[:, j] = D[j mod r, :]; "mini" repeats D along out; "bat": ΔW = W₀ D + D in r×r blocks. Kang, Yin 2024."""
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
    """ΔW has the entries that were saved, zeros elsewhere. Source: Bhardwaj et al. 2024."""
    values, indices = need(t, s, "shira_weight", "shira_indices")
    rows, columns = indices.long()
    if len(rows) and not (
        0 <= rows.min() <= rows.max() < s.shape[0] and 0 <= columns.min() <= columns.max() < s.shape[1]
    ):
        raise s.wrong("an index lies outside the matrix")
    return values.new_zeros(s.shape).index_put((rows, columns), values, accumulate=True)


def supertuning(t: Tensors, s: Settings) -> Tensor:
    """ΔW has the entries that were saved, and α/r · B A where it has a rank. Source: Super, Supra (2026)."""
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


def fourierft(t: Tensors, s: Settings) -> Tensor:
    """ΔW = s·Re(IFFT₂(F)), F with n entries at places that follow from a seed. Source: Gao et al. 2024."""
    (values,) = need(t, s, "fourierft_spectrum")
    update: Tensor = torch.fft.ifft2(_placed(values, s)).real
    return s.number("scaling", 150.0) * update


def waveft(t: Tensors, s: Settings) -> Tensor:
    """ΔW = s·(inverse wavelet transform of F), or s·F itself, F as in FourierFT. Source: WaveFT (2025).

    F, in a frame of zeros as wide as the filter reaches, is the four bands of a transform of one level.
    """
    (values,) = need(t, s, "waveft_spectrum")
    scaling, spectrum = s.number("scaling", 25.0), _placed(values, s)
    if not s.config.get("use_idwt", True):
        return scaling * spectrum
    low = _filter(s)
    high = [(-1) ** k * value for k, value in enumerate(reversed(low))]
    filters = torch.tensor([low, high], dtype=values.dtype)[:, None]
    reach = len(low) - 2

    def joined(first: Tensor, second: Tensor) -> Tensor:
        """Two bands as one, along the last axis."""
        found = F.conv_transpose1d(torch.stack([first, second], 1), filters, stride=2)[:, 0]
        return found[:, reach : found.shape[1] - reach]

    frames = [reach + side % 2 for side in s.shape]  # both sides together; a filter's length is even
    (top, left), (bottom, right) = ((frame // 2, frame - frame // 2) for frame in frames)
    spectrum = F.pad(spectrum, (bottom, right, top, left))
    upper, lower = spectrum.chunk(2, 0)
    (a, h), (v, d) = upper.chunk(2, 1), lower.chunk(2, 1)
    update = joined(joined(a, v).T, joined(h, d).T).T
    start = [(have - want) // 2 for have, want in zip(update.shape, s.shape, strict=True)]
    return scaling * update[start[0] :, start[1] :][: s.shape[0], : s.shape[1]]


def _filter(s: Settings) -> list[float]:
    """A wavelet's low-pass filter: Haar's, or one of the tables in PEFT."""
    family = s.config.get("wavelet_family", "db1")
    if family == "db1":
        return [math.sqrt(0.5)] * 2
    try:
        from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
        from peft.tuners.waveft.wavelet import Wavelet
    except ImportError:
        raise s.wrong(f"the filter of wavelet_family = {family!r:.40} is a table in PEFT; pip install peft") from None
    try:
        low = list(Wavelet(str(family)).rec_lo)
    except ValueError:
        low = []
    if not low or WAVELET_REDUCTIONS.get(str(family)) != (len(low) - 2, len(low) - 2):  # so of coif5, in 0.21
        raise s.wrong(f"wavelet_family = {family!r:.40}: PEFT has no filter of it with which its own layer runs")
    return low


def c3a(t: Tensors, s: Settings) -> Tensor:
    """ΔW consists of circulant b×b blocks, (ΔW)_{mb+i, nb+j} = w_{mn, (j − i) mod b} / in. Source: Chen et al. 2025."""
    (kernel,) = need(t, s, "c3a_kernel")  # (out/b, in/b, b)
    size = kernel.shape[2]
    places = (torch.arange(size)[None, :] - torch.arange(size)[:, None]) % size
    blocks = kernel[:, :, places]  # (out/b, in/b, b, b)
    return blocks.permute(0, 2, 1, 3).reshape(kernel.shape[0] * size, -1) / (kernel.shape[1] * size)


def deft(t: Tensors, s: Settings) -> Factors:
    """W' = (I − Q Tᵀ) W₀ + s·Q R: Q = P and T = relu(P), or both from P's QR; no R: only a subspace is removed.

    Source: DEFT, PaRa (2026).
    """
    (P,) = need(t, s, "deft_P")
    if s.config.get("decomposition_method", "relu") == "qr":
        Q = torch.linalg.qr(P)[0]
        T = Q
    else:
        Q, T = P, torch.relu(P)
    V = -(T.T @ s.base())
    if not s.config.get("para"):
        (R,) = need(t, s, "deft_R")
        alpha = s.config.get("alpha")
        V = V + (s.number("alpha", 1) / len(R) if alpha else 1.0) * R
    return Q, V


def glora(t: Tensors, s: Settings) -> Tensor:
    """ΔW = W₀ ∘ A + B, each a product, a column, a number or nothing. Source: Chavan et al. 2023."""

    def path(name: str) -> Tensor | float:
        if f"{name}.Xd" in t:
            return t[f"{name}.Xd"] @ need(t, s, f"{name}.Xu")[0]
        return t.get(f"{name}.X", 0.0)

    W = s.base()
    return W * path("glora_A") + path("glora_B")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {  # by transformers' names
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
}


def peanut(t: Tensors, s: Settings) -> Tensor:
    """ΔWᵀ = s·f(W₀ᵀ) B, f a small network on the rows of W₀ᵀ. Source: PEANuT (2025)."""
    A, B = need(t, s, "peanut_A", "peanut_B")
    act = ACTIVATIONS.get(str(s.config.get("act_fn", "relu")))
    if act is None:
        raise s.wrong(f"act_fn = {s.config.get('act_fn')!r:.40} is not read; merge it with PEFT")
    hidden = act(s.base().T @ A.T)
    depth = sum(name.startswith("peanut_encoders.") for name in t)
    kept = []
    for k in range(depth):
        kept.append(hidden)
        hidden = act(hidden @ need(t, s, f"peanut_encoders.{k}")[0].T)
    for k in range(depth):
        hidden = act(hidden @ need(t, s, f"peanut_decoders.{k}")[0].T) + kept[depth - 1 - k]
    return s.number("scaling", 1.0) * (hidden @ B.T).T


def osf(t: Tensors, s: Settings) -> Factors:
    """W' = U_h S_h V_h + U S V: the k first singular components of W₀ stay, the others are trained.

    Source: OSF (2025).
    """
    U, S, V = need(t, s, "osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low")
    P, values, Q = torch.linalg.svd(s.base(), full_matrices=False)
    kept = len(values) - len(S)
    return torch.cat([U * S, -P[:, kept:] * values[kept:]], 1), torch.cat([V, Q[kept:]])


def frod(t: Tensors, s: Settings) -> Tensor:
    """W' = U (diag(λ) + S) Vᵀ, S sparse; V is that of the layers of one kind, U that with W₀ = U diag(λ₀) Vᵀ.

    Source: FRoD (2026).
    """
    diagonal, values = need(t, s, "frod_lambda_l", "frod_lambda_s_values")
    parts = s.module.split(".")
    kind = "_".join(parts[-1:] if len(parts) == 1 or parts[-2].isdigit() else parts[-2:])
    if kind == "output_dense" and parts[-3:-2] == ["attention"]:
        kind = "attention_output"
    V, places = s.shared(f"frod_V.{kind}"), s.shared(f"frod_s_indices.{kind}").long()
    size = s.shape[1]
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < size:
        raise s.wrong("an index lies outside the matrix")
    W = s.base()
    v, w = V.double(), W.double()
    try:
        scaled = torch.linalg.solve(v, w.T).T  # U diag(λ₀)
    except RuntimeError:
        scaled = w @ torch.linalg.pinv(v, rtol=1e-6).T
    lengths = scaled.norm(dim=0)
    U = torch.where(lengths > 1e-12, scaled / lengths, 0).float().to(W.dtype)  # PEFT keeps it in float32
    inner = values.new_zeros(size, size).index_put((places[0], places[1]), values, accumulate=True)
    return U @ (inner + torch.diag(diagonal)) @ V.T - W


def adamss(t: Tensors, s: Settings) -> Tensor:
    """ΔW's rows of cluster k are B_k A_k P, P the r first right singular vectors of [W₀ b]; the bias has a column too.

    The clusters are not saved: k-means on the rows of the left singular vectors, as PEFT makes it anew when it loads. P
    is saved, and is held to the one made here, and the clusters' sizes to those of B.

    Source: AdaMSS (2025).
    """
    (P,) = need(t, s, "adamss_newB")
    count = sum(name.startswith("adamss_B.") for name in t)
    W = s.base().float()
    if P.shape[1] == W.shape[1] + 1:
        bias = s.bias()
        if bias is None:
            raise s.wrong("its bias is needed and the base has none")
        W = torch.cat([W, bias.float()[:, None]], 1)
    if P.shape[1] != W.shape[1] or not len(P) <= min(W.shape) or not count <= len(W):
        raise s.wrong(f"{tuple(P.shape)} and {count} clusters do not fit {s.shape}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.whole("random_seed", 42))
        left, _, right = torch.svd_lowrank(W, q=len(P), niter=2)
    labels = _clusters(left, count, s)
    sizes = [len(t[f"adamss_B.{k}"]) if f"adamss_B.{k}" in t else -1 for k in range(count)]
    overlap = (right.T @ P.T.float()).square().sum()
    if abs(overlap - len(P)) > 1e-2 * len(P) or [int((labels == k).sum()) for k in range(count)] != sizes:
        raise s.wrong("its clusters of rows are not saved and come out different here; merge it with PEFT")
    update = P.new_zeros(s.shape)
    for k in range(count):
        A, B = need(t, s, f"adamss_A.{k}", f"adamss_B.{k}")
        update[labels == k] = (B @ A @ P)[:, : s.shape[1]]
    return update


def _clusters(rows: Tensor, count: int, s: Settings) -> Tensor:
    """Each row's cluster, by the k-means of scikit-learn with the options that PEFT sets."""
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise s.wrong("its clusters of rows are made again by scikit-learn; pip install scikit-learn") from None
    means = KMeans(n_clusters=count, init="random", n_init=1, max_iter=10, random_state=123456789)
    return torch.from_numpy(means.fit_predict(rows.numpy()))


# --- parts of them --------------------------------------------------------------------------------------------------


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


def _placed(values: Tensor, s: Settings) -> Tensor:
    """The values at the places that torch's generator gives for the seed, (out, in)."""
    rows, columns = s.shape
    if len(values) > rows * columns:
        raise s.wrong(f"{len(values)} values do not fit {s.shape}")
    generator = torch.Generator().manual_seed(s.whole("random_loc_seed", 777))
    places = torch.randperm(rows * columns, generator=generator)[: len(values)]
    return values.new_zeros(rows * columns).index_put((places,), values).view(rows, columns)


def _diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """The matrix with these blocks on its diagonal."""
    found: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return found


def _picked(theta: Tensor, indices: Tensor, s: Settings) -> Tensor:
    indices = indices.long()
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(theta):
        raise s.wrong("an index lies outside the shared vector")
    return theta[indices]


# --- all of them ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Formula:
    """How a type of PEFT is read.

    Arguments:
        prefix: What the names of its tensors begin with.
        update: The formula.
        sides: (out, in) from the shapes of a layer's tensors, where they tell; else the base is needed for it.
        needs_base: Whether ΔW depends on W₀, for any options.
        scales_base: Whether its tensors multiply W₀, so that their rounding moves all of W'.
    """

    prefix: str
    update: Callable[[Tensors, Settings], Factors | Tensor]
    sides: Callable[[Shapes], tuple[int, int]] | None = None
    needs_base: bool = False
    scales_base: bool = False


def _of(rows: str, columns: str) -> Callable[[Shapes], tuple[int, int]]:
    return lambda shapes: (shapes[rows][0], shapes[columns][1])


def _kron(shapes: Shapes) -> tuple[int, int]:
    def side(name: str) -> tuple[int, int]:
        whole = shapes.get(name)
        return (whole[0], whole[1]) if whole else (shapes[f"{name}_a"][0], shapes[f"{name}_b"][1])

    (a, b), (c, d) = side("lokr_w1"), side("lokr_w2")
    return a * c, b * d


FORMULAS = {
    "LORA": Formula("lora_", lora, _of("lora_B", "lora_A")),
    "ADALORA": Formula("lora_", adalora, _of("lora_B", "lora_A")),
    "LOHA": Formula("hada_", loha, _of("hada_w1_a", "hada_w1_b")),
    "LOKR": Formula("lokr_", lokr, _kron),
    "VERA": Formula("vera_", vera),
    "PVERA": Formula("pvera_", pvera),
    "RANDLORA": Formula("randlora_", randlora),
    "HIRA": Formula("hira_", hira, _of("hira_B", "hira_A"), needs_base=True),
    "DELORA": Formula("delora_", delora, _of("delora_B", "delora_A")),
    "GRALORA": Formula(
        "gralora_", gralora, lambda s: (s["gralora_B"][0] * s["gralora_B"][2], s["gralora_A"][0] * s["gralora_A"][1])
    ),
    "VBLORA": Formula("vblora_", vblora),
    "UNILORA": Formula("unilora_", unilora, _of("unilora_indices_B", "unilora_indices_A")),
    "TINYLORA": Formula("tinylora_", tinylora, _of("tinylora_B", "tinylora_A")),
    "OFT": Formula("oft_", oft, needs_base=True, scales_base=True),
    "BOFT": Formula("boft_", boft, needs_base=True, scales_base=True),
    "HRA": Formula("hra_", hra, needs_base=True),
    "ROAD": Formula("road_", road, needs_base=True, scales_base=True),
    "PSOFT": Formula("psoft_", psoft, needs_base=True),
    "IA3": Formula("ia3_", ia3, needs_base=True, scales_base=True),
    "MISS": Formula("miss_", miss),
    "SHIRA": Formula("shira_", shira),
    "SUPERTUNING": Formula("supertuning_", supertuning),
    "FOURIERFT": Formula("fourierft_", fourierft),
    "WAVEFT": Formula("waveft_", waveft),
    "C3A": Formula(
        "c3a_", c3a, lambda s: (s["c3a_kernel"][0] * s["c3a_kernel"][2], s["c3a_kernel"][1] * s["c3a_kernel"][2])
    ),
    "DEFT": Formula("deft_", deft, _of("deft_P", "deft_R"), needs_base=True),
    "GLORA": Formula("glora_", glora, needs_base=True),
    "PEANUT": Formula("peanut_", peanut, needs_base=True),
    "POLY": Formula(
        "poly_",
        poly,
        lambda s: (s["poly_lora_B"][0] * s["poly_lora_B"][3], s["poly_lora_A"][0] * s["poly_lora_A"][2]),
    ),
    "FROD": Formula("frod_", frod, needs_base=True, scales_base=True),
    "ADAMSS": Formula("adamss_", adamss, needs_base=True),
    "OSF": Formula("osf_", osf, _of("osf_svd_params.U_low", "osf_svd_params.V_low"), needs_base=True),
}

_MERGE = "load it with PEFT, call merge_and_unload() and save_pretrained(folder), and open that folder"
REFUSED = {
    "LILY": "its weight depends on the input (it mixes by a router), so there is no W'",
    "XLORA": "its weight depends on the input, so there is no W'; open the adapters that it mixes",
    "SHADOW": "it runs a second network beside the layers and changes no matrix",
    "BEFT": "it trains biases and changes no matrix",
    "LN_TUNING": "it trains norms and changes no matrix of a linear layer",
    "TRAINABLE_TOKENS": "it trains rows of the embedding and changes no matrix of a linear layer",
    "PROMPT_TUNING": "it trains a prompt and changes no matrix",
    "MULTITASK_PROMPT_TUNING": "it trains a prompt and changes no matrix",
    "P_TUNING": "it trains a prompt and changes no matrix",
    "PREFIX_TUNING": "it trains a prefix and changes no matrix",
    "CPT": "it trains a prompt and changes no matrix",
    "CARTRIDGE": "it trains keys and values of a cache and changes no matrix",
    "ADAPTION_PROMPT": "it trains prompts and gates and changes no matrix",
    "BONE": f"PEFT renamed it MISS and changed its format; {_MERGE}",
}

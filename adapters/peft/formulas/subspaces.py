"""Parts of W₀ that are projected, replaced, or put through a network."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.adapters.peft.formulas.settings import Factors, Settings, Tensors, need


def deft(t: Tensors, s: Settings) -> Factors:
    """Return ΔW for W' = (I − Q Tᵀ) W₀ + s·Q R: Q = P and T = relu(P), or both from P's QR.

    No R: only a subspace is removed. Source: DEFT, PaRa (2026).
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


def osf(t: Tensors, s: Settings) -> Factors:
    """Return ΔW for W' = U_h S_h V_h + U S V: the k first singular components of W₀ stay, the others are trained.

    Source: OSF (2025).
    """
    U, S, V = need(t, s, "osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low")
    P, values, Q = torch.linalg.svd(s.base(), full_matrices=False)
    kept = len(values) - len(S)
    return torch.cat([U * S, -P[:, kept:] * values[kept:]], 1), torch.cat([V, Q[kept:]])


def frod(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW for W' = U (diag(λ) + S) Vᵀ, S sparse.

    V is that of the layers of one kind, U that with W₀ = U diag(λ₀) Vᵀ. Source: FRoD (2026).
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
    """Return ΔW with the rows B_k A_k P in cluster k, P the r first right singular vectors of [W₀ b].

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
    """Return ΔW for ΔWᵀ = s·f(W₀ᵀ) B, f a small network on the rows of W₀ᵀ. Source: PEANuT (2025)."""
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

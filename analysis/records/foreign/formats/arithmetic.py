r"""ΔW of an adapted layer of another tool, by its own formula.

    lora        ΔW = s·up·down, s = α/r; a kernel is its matrix [out, in·k…]; with a Tucker core C (r, r, k…)
                ΔW[o, i, k] = s·Σ_pq up[o, p] C[p, q, k] down[q, i]
    loha        ΔW = s·(A₁ B₁) ∘ (A₂ B₂), each with a core or without
    lokr        ΔW = s·C ⊗ D, each a matrix or a product; D may have a core
    ia3         W' = (1 + l)·W₀ of LyCORIS, l·W₀ of AdapterHub, by rows or by inputs
    diff        ΔW itself
    magnitude   W' = m·V / ‖V‖, V = W₀ + ΔW, of the rows where m is [out, 1…], of the inputs where it is [1, in, 1…]

Source: the forwards of sd-scripts (``networks/lora.py``), LyCORIS (``lycoris/modules``), mlx-lm (``tuner/lora.py``,
``tuner/dora.py``), torchtune (``modules/peft``), LitGPT (``lora.py``), loralib (``layers.py``), adapters
(``methods/lora.py``) and NVlabs' DoRA (``tuners/dora.py``). LyCORIS' ``get_diff_weight`` multiplies by s twice; its
forward, which trains, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from deltaw.adapters.errors import RecordError
from deltaw.adapters.linear.norms import constant_norms
from deltaw.adapters.method import Method, ScaledFactors, ScaledLowRank
from deltaw.adapters.peft.formulas.hadamard import loha, lokr
from deltaw.adapters.peft.formulas.settings import Factors, Settings
from deltaw.analysis.records.foreign.formats.layers import Layer, kernel_shape
from deltaw.analysis.records.source import Shape

Shapes = Mapping[str, tuple[int, ...]]


def sides(layer: Layer, shapes: Shapes) -> Shape | None:
    """Return (out, in·k…) from the shapes of a layer's tensors, ``None`` where they do not tell.

    Raises:
        RecordError: They do not go together.
    """
    if layer.expert is not None:
        shapes = {role: shape[1:] if len(shape) == 3 else shape for role, shape in shapes.items()}
    if layer.kind in ("diff", "whole"):
        return kernel_shape(shapes["diff"])
    if layer.kind == "lora":
        if min(len(shapes[role]) for role in ("up", "down")) < 2:
            raise RecordError(f"its factors are {shapes['up']} and {shapes['down']}, which are no matrices")
        up, down = (kernel_shape(shapes[role]) for role in ("up", "down"))
        if layer.turned:
            up, down = up[::-1], down[::-1]
        core = shapes.get("mid")
        inner = len(layer.parts) * up[1] if layer.parts else up[1]
        if core is not None:
            inner = down[0] if core[:2] == (up[1], down[0]) else -1
        if inner != down[0]:
            raise RecordError(f"its factors are {up} and {down}, which do not go together")
        return layer.out or up[0], down[1] * (1 if core is None else kernel_shape((1, *core[2:]))[1])
    if layer.kind == "loha":
        a, b = kernel_shape(shapes["w1_a"]), kernel_shape(shapes["w1_b"])
        core = shapes.get("t1")
        others = kernel_shape(shapes["w2_a"]), kernel_shape(shapes["w2_b"])
        if (a, b) != others and (a[core is not None], b[1]) != (others[0][core is not None], others[1][1]):
            raise RecordError(f"its products are of {a}, {b} and of {others[0]}, {others[1]}, which do not go together")
        return (a[0], b[1]) if core is None else (a[1], b[1] * kernel_shape((1, *core[2:]))[1])
    if layer.kind == "lokr":
        left, right = (_kron_side(shapes, name) for name in ("w1", "w2"))
        return left[0] * right[0], left[1] * right[1]
    return None  # a scale or a magnitude tells one side


def _kron_side(shapes: Shapes, name: str) -> Shape:
    if name in shapes:
        return kernel_shape(shapes[name])
    a, b, core = kernel_shape(shapes[f"{name}_a"]), kernel_shape(shapes[f"{name}_b"]), shapes.get("t2")
    if name == "w2" and core is not None:
        return a[1], b[1] * kernel_shape((1, *core[2:]))[1]
    return a[0], b[1]


def scaling(layer: Layer, t: Mapping[str, Tensor]) -> float:
    """Return s = α / r, with α by the tensor, else by the settings, else r; kohya and LyCORIS take an α of 0 as r.

    Raises:
        RecordError: α is no number.
    """
    if layer.scaling is not None:
        return layer.scaling
    alpha = layer.alpha
    if "alpha" in t:
        if t["alpha"].numel() != 1:
            raise RecordError(f"alpha has {t['alpha'].numel()} numbers")
        alpha = float(t["alpha"].reshape(())) or None
    if alpha is not None and not math.isfinite(alpha):
        raise RecordError(f"alpha is {alpha}")
    rank = layer.rank or _rank(layer, t)
    if alpha is None or not rank:
        return 1.0
    return alpha / rank


def _rank(layer: Layer, t: Mapping[str, Tensor]) -> int:
    if layer.kind == "lora":
        return t["up"].shape[0 if layer.turned else 1]
    if layer.kind == "loha":
        return t["w1_b"].shape[0]
    # LoKr of two whole matrices has no rank, and s = 1.
    return next((t[name].shape[0] for name in ("w1_b", "w2_b") if name in t), 0)


def update(
    layer: Layer, t: Mapping[str, Tensor], shape: Shape, base: Callable[[], Tensor], where: str
) -> Factors | Tensor:
    """Return ΔW (out, in) as U and V where the layer is a plain product, else as it is.

    Arguments:
        layer: What it is.
        t: Its tensors, by role, in the dtype of the computation.
        shape: (out, in).
        base: Returns W₀ (out, in).
        where: For messages.
    """
    if layer.kind == "whole":
        return t["diff"].reshape(shape) - base()
    if layer.kind == "ia3":
        return _scale(layer, t["scale"], base())
    plain = _plain(layer, t, shape, where)
    if "magnitude" not in t and plain is not None:
        return plain
    W = base()
    V = W if plain is None else W + (plain[0] @ plain[1] if isinstance(plain, tuple) else plain)
    return _normed(V, t["magnitude"]) - W


def _plain(layer: Layer, t: Mapping[str, Tensor], shape: Shape, where: str) -> Factors | Tensor | None:
    """ΔW before any magnitude."""
    if layer.kind == "magnitude":
        return None
    if layer.kind == "diff":
        return t["diff"].reshape(shape)
    s = scaling(layer, t)
    if layer.kind == "lora":
        U, V = factors(layer, t)
        return s * U, V
    flat = {role: value.flatten(1) if value.ndim > 2 and role[0] == "w" else value for role, value in t.items()}
    settings = Settings(where, "", {"alpha": s, "r": 1}, shape, lambda: torch.empty(0), lambda _: torch.empty(0))
    if layer.kind == "loha":
        named: dict[str, Tensor] = {}
        for k in ("1", "2"):
            a, b = flat[f"w{k}_a"], flat[f"w{k}_b"]
            named |= dict(zip((f"hada_w{k}_a", f"hada_w{k}_b"), untucked(t.get(f"t{k}"), a, b), strict=True))
        settings.config = {"alpha": s * len(named["hada_w1_b"])}
        return loha(named, settings)
    named = {f"lokr_{role}": value for role, value in flat.items() if role in ("w1", "w2", "w1_a", "w1_b")}
    if "w2_a" in t:
        pair = untucked(t.get("t2"), flat["w2_a"], flat["w2_b"])
        named |= dict(zip(("lokr_w2_a", "lokr_w2_b"), pair, strict=True))
    # The columns of D are (input, place in the kernel), and so are those of C ⊗ D: its blocks follow each other.
    return lokr(named, settings)


def factors(layer: Layer, t: Mapping[str, Tensor]) -> Factors:
    """Return U (out, r) and V (r, in·k…) of a plain product, before s."""
    U, V = t["up"], t["down"]
    if layer.turned:
        U, V = U.T, V.T
    U, V = U.flatten(1), V.flatten(1)
    if "mid" in t:
        V = _core(t["mid"], V)
    if not layer.parts:
        return U, V
    # ΔW = Σ_g E_g U_g V_g, where E_g puts a group's rows into their places: one product of all ranks.
    rank, out = U.shape[1], layer.out or len(U)
    whole = U.new_zeros(out, rank * len(layer.parts))
    for k, part in enumerate(layer.parts):
        places = torch.cat([torch.arange(r.start, r.stop) for r in part.rows])
        whole[places, k * rank : (k + 1) * rank] = U[part.start : part.stop]
    return whole, V


def _core(core: Tensor, V: Tensor) -> Tensor:
    """Σ_q C[p, q, k] V[q, i] as (p, i·k)."""
    found: Tensor = torch.einsum("pqk,qi->pik", core.flatten(2), V)
    return found.flatten(1)


def untucked(core: Tensor | None, a: Tensor, b: Tensor) -> Factors:
    """A (out, r) and B (r, in·k…), where a core has them stored as (r, out) and (r, in)."""
    return (a, b) if core is None else (a.T, _core(core, b))


def by_rows(magnitude: Tensor, out: int) -> bool:
    """Return whether a magnitude is one of rows: (out, 1…) or (out,)."""
    return magnitude.ndim < 2 or (magnitude.shape[0] == out and magnitude.numel() == out)


def _normed(V: Tensor, magnitude: Tensor) -> Tensor:
    """m·V / ‖V‖, by rows or by inputs; of a kernel, an input's norm is over all its places."""
    if by_rows(magnitude, len(V)):
        norms: Tensor = torch.linalg.vector_norm(V, dim=1)
        return V * (magnitude.reshape(-1) / norms)[:, None]
    inputs = magnitude.numel()
    places = V.reshape(len(V), inputs, -1)
    norms = torch.linalg.vector_norm(places, dim=(0, 2))
    return (places * (magnitude.reshape(-1) / norms)[:, None]).reshape(V.shape)


def _scale(layer: Layer, scale: Tensor, W: Tensor) -> Tensor:
    """ΔW of a scale of rows or of inputs."""
    change = scale.reshape(-1)
    if layer.scale_is_weight:
        change = change * (1.0 if layer.scaling is None else layer.scaling) - 1
    if not layer.on_input:
        return W * change[:, None]
    return (W.reshape(len(W), len(change), -1) * change[:, None]).reshape(W.shape)


def scaled(layer: Layer, t: Mapping[str, Tensor]) -> ScaledFactors | None:
    """Return U, V and s as they are stored, ``None`` where the layer is no plain product of two."""
    if layer.kind != "lora" or "magnitude" in t:
        return None
    U, V = factors(layer, t)
    return ScaledFactors(U, V, scaling(layer, t))


def form(layer: Layer, t: Mapping[str, Tensor], base: Tensor) -> ScaledLowRank | None:
    """Return W' as diag(ρ) (W₀ + U V) diag(γ) in float64, ``None`` where it has no such form.

    Arguments:
        layer: What it is.
        t: Its tensors in float64.
        base: W₀ (out, in) in float32 or float64.
    """
    if layer.kind != "lora":
        return None
    U, V = factors(layer, t)
    U = scaling(layer, t) * U
    if "magnitude" not in t:
        return Method.scaled(base, U, V)
    magnitude = t["magnitude"]
    rows = by_rows(magnitude, len(base))
    if not rows and magnitude.numel() != base.shape[1]:
        return None  # an input of a kernel has several columns, and one norm
    norms = constant_norms(base, V.contiguous(), U.contiguous(), 1.0, "row" if rows else "column")
    ratio = magnitude.reshape(-1) / norms
    return Method.scaled(base, U, V, ratio if rows else None, None if rows else ratio)


def label(layer: Layer, shapes: Shapes, out: int) -> str:
    """Return the method's name for tables."""
    if layer.kind in ("diff", "whole"):
        return "ft"
    if "magnitude" not in layer.tensors:
        return layer.kind
    shape = shapes["magnitude"]
    rows = len(shape) < 2 or shape[0] == out == math.prod(shape)
    dora = f"dora-{'row' if rows else 'column'}"
    return dora if layer.kind == "lora" else "magnitude" if layer.kind == "magnitude" else f"{layer.kind}-{dora}"

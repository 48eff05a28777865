"""The low-rank product that a recorded adapter trained, s·B A, with its rank and scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deltaw.adapters.errors import RecordError
from deltaw.adapters.method import ScaledFactors
from deltaw.adapters.peft.targets import fits
from deltaw.analysis.tables.run import Run

MAGNITUDES = ("magnitude", "lora_magnitude_vector")  # of deltaw's DoRA and of PEFT's
# Settings of PEFT with which s·B A is another product than that of the stored A and B.
OTHER_PRODUCTS = ("use_qalora", "use_bdlora", "kasa_config")


@dataclass(frozen=True, eq=False)
class LowRankPart:
    """s·B A of one module.

    Arguments:
        factors: B (out, r), A (r, in) and s, as they are stored.
        stabilized: Whether s = α/√r (rsLoRA), else it is α/r.
        magnitude: What DoRA trains beside it, (out,) or (in,); ``None`` where there is none.
        scales_base: Whether magnitudes multiply W₀ + s·B A, so that ΔW is of full rank whatever s·B A is.
        whole: Whether ΔW is s·B A and nothing else.
    """

    factors: ScaledFactors
    stabilized: bool
    magnitude: Tensor | None
    scales_base: bool
    whole: bool

    @property
    def rank(self) -> int:
        """r, as it was trained."""
        return len(self.factors.V)


def low_rank_part(run: Run, module: str, step: int) -> LowRankPart | None:
    """Return s·B A of a module with LoRA's A and B and one scale, ``None`` where there is no such product.

    Of what starts from another point than W₀ (PiSSA and its like) it is not ΔW, and then ``whole`` is false.
    """
    state = run.state(module, step)
    if {"up", "down"} <= set(state) and "magnitude" not in state:  # of another tool than PEFT
        plain = run.source.scaled_factors(module, step)
        if plain is None or plain.scaling <= 0:
            return None
        return LowRankPart(plain, stabilized=False, magnitude=None, scales_base=False, whole=True)
    A, B = state.get("lora_A"), state.get("lora_B")
    if A is None or B is None or A.ndim != 2 or B.ndim != 2 or len(A) == 0 or B.shape[1] != len(A):
        return None
    method, settings = run.method_of(module), run.source.info.get("peft")
    magnitude = next((state[name] for name in MAGNITUDES if name in state), None)
    scales = magnitude is not None
    if method is not None:
        scales = method.scales_base
        scaling, stabilized = getattr(method, "scaling", None), bool(getattr(method, "rank_stabilized", False))
    elif isinstance(settings, Mapping) and settings.get("peft_type") == "LORA":
        if any(settings.get(name) for name in OTHER_PRODUCTS):
            return None
        stabilized = bool(settings.get("use_rslora"))
        scaling = peft_alpha(settings, module, run.source.where) / (math.sqrt(len(A)) if stabilized else len(A))
    else:
        return None
    if not isinstance(scaling, float | int):
        return None
    found = None if scales else run.source.scaled_factors(module, step)
    if found is not None and (found.U.shape, found.V.shape) == (B.shape, A.shape):
        return LowRankPart(found, stabilized, None, scales_base=False, whole=True)  # a layer may add it twice
    return LowRankPart(ScaledFactors(B, A, float(scaling)), stabilized, magnitude, scales_base=scales, whole=False)


def peft_alpha(settings: Mapping[str, Any], module: str, where: str) -> float:
    """Return α of a module by PEFT's rule: that of the first pattern that names it, else ``lora_alpha``.

    Raises:
        RecordError: It is no number, or a pattern none that can be matched.
    """
    patterns = settings.get("alpha_pattern")
    found = next(
        (
            alpha
            for pattern, alpha in (patterns if isinstance(patterns, Mapping) else {}).items()
            if fits(pattern, module, where, "alpha_pattern")
        ),
        settings.get("lora_alpha"),
    )
    found = 8.0 if found is None else found
    if isinstance(found, bool) or not isinstance(found, float | int) or not math.isfinite(found):
        raise RecordError(f"{where}: {module}: lora_alpha = {found!r:.40} is no number")
    return float(found)

"""Is a base the one that a run was trained from?

What is known of W₀ depends on who wrote the run:

- whole matrices at step 0, matrices that training left alone, and the base that a run of deltaw keeps, are W₀ itself;
- a fine-tuned matrix is near W₀, while two unrelated ones stand at a right angle: ‖W − W₀‖ ≈ √2 ‖W₀‖, cosine ≈ 0;
- PiSSA and OLoRA start from W₀'s own vectors: each row of B₀ᵀ W₀ is parallel to that row of A₀.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDED = 0.01  # ‖W − W₀‖ / ‖W₀‖ up to which it is W₀, rounded; bfloat16 comes to 0.002
FOREIGN = 0.5  # from which on it is another matrix; W₀ in 4 bits comes to 0.1
UNRELATED = 0.05  # cosine up to which two matrices have nothing in common
ENOUGH = 10_000  # entries from which on chance gives no such cosine: it spreads by 1/√entries


@dataclass(frozen=True)
class Nearness:
    """How near a matrix is to W₀.

    Arguments:
        distance: ‖W − W₀‖ / ‖W₀‖.
        cosine: Of the two, as vectors.
        entries: How many numbers they have.
        untouched: Whether no training lies between them, so that they should be the same.
    """

    distance: float
    cosine: float
    entries: int
    untouched: bool


def nearness(weight: Tensor, base: Tensor, *, untouched: bool) -> Nearness:
    """Return how near a matrix (out, in) is to W₀ (out, in)."""
    weight, base = weight.double().flatten(), base.double().flatten()
    size, own = float(torch.linalg.vector_norm(base)), float(torch.linalg.vector_norm(weight))
    away = float(torch.linalg.vector_norm(weight - base))
    cosine = float(weight @ base) / (size * own) if size and own else 0.0
    distance = away / size if size else (math.inf if away else 0.0)
    return Nearness(distance, cosine, base.numel(), untouched)


def why_foreign(found: Mapping[str, Nearness]) -> str | None:
    """Return why W₀ is of another model than all these matrices, or ``None`` where they do not say so.

    Some may be far from it, as a layer that was started anew is. So it takes all, two untouched ones or more among
    them; or the median of the trained ones, which no fine-tuning brings to a right angle with its start.
    """
    untouched = [near.distance for near in found.values() if near.untouched]
    nearest = min((near.distance for near in found.values()), default=0.0)
    if len(untouched) > 1 and nearest > FOREIGN:
        return (
            f"of {len(untouched)} matrices that no training touched it has none, the nearest is {nearest:.3g} ‖W₀‖ away"
        )
    trained = [near for near in found.values() if not near.untouched and near.entries >= ENOUGH]
    if not trained:
        return None
    distance = float(torch.tensor([near.distance for near in trained]).median())
    cosine = float(torch.tensor([near.cosine for near in trained]).median())
    if distance >= 1 and cosine <= UNRELATED:
        return f"its matrices have nothing in common with the run's (‖W−W₀‖ = {distance:.3g} ‖W₀‖, cosine {cosine:.2g})"
    return None


def start_agrees(lora_a: Tensor, lora_b: Tensor, base: Tensor) -> float:
    """Return the median cosine of the rows of B₀ᵀ W₀ and A₀: 1 where the start was made from this W₀, else about 0.

    PiSSA: B₀ = U √(Σ/s), A₀ = √(Σ/s) Vᵀ, so B₀ᵀ W₀ = Σ A₀. OLoRA: B₀ = Q, A₀ = R, so B₀ᵀ W₀ = A₀.

    Arguments:
        lora_a: A₀ (r, in).
        lora_b: B₀ (out, r).
        base: W₀ (out, in).
    """
    seen = lora_b.double().mT @ base.double()  # (r, in)
    return float(torch.nn.functional.cosine_similarity(seen, lora_a.double(), dim=1, eps=1e-300).median())

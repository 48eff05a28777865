"""Adapters of convolutions: PEFT's tensors of a kernel [out, in, k…] as those of the matrix [out, in·k…].

lora_A (r, in, k…), lora_B (out, r, 1…)    (r, in·k…), (out, r)
hada_t1 (r, r, k…), hada_w1_b (r, in)      Σ_q t[p, q, k] w[q, i] as (r, in·k…)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltaw.analysis.records.foreign.formats.arithmetic import untucked

# Which tensors of a type have two sides on a linear layer, and more on a convolution.
FLAT = re.compile(r"lora_[AB]|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|hira_[AB]|lora_magnitude_vector")
CORES = {
    "hada_t1": ("hada_w1_a", "hada_w1_b"),
    "hada_t2": ("hada_w2_a", "hada_w2_b"),
    "lokr_t2": ("lokr_w2_a", "lokr_w2_b"),
}
READ = ("LORA", "LOHA", "LOKR", "HIRA")  # types whose convolutions are read
SPECIAL = ("use_qalora", "use_bdlora", "kasa_config")  # options that are of linear layers alone


def of_a_kernel(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether an adapter's tensors are those of a convolution, as far as they tell."""
    return any(key in CORES or (len(shape) > 2 and bool(FLAT.fullmatch(key))) for key, shape in shapes.items()) or any(
        key == "ia3_l" and len(shape) > 2 for key, shape in shapes.items()
    )


def why_not(shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any], plain: Any) -> str | None:
    """Return why an adapter of a convolution is not read, ``None`` where it is.

    Arguments:
        shapes: Of the adapter's tensors.
        settings: ``adapter_config.json``.
        plain: The values of ``init_lora_weights`` that leave W₀ as it is.
    """
    kind = settings["peft_type"]
    special = any(settings.get(key) for key in SPECIAL) or settings.get("init_lora_weights", True) not in plain
    if kind not in READ or (kind == "LORA" and special):
        return f"it is a convolution, of which {kind} with these options is not read; merge it with PEFT"
    if kind == "LORA" and len(shapes.get("lora_A", ())) > 1 and shapes["lora_A"][0] != shapes.get("lora_B", (0, 0))[1]:
        return "it is a convolution in groups, whose LoRA sees inputs that the kernel does not, so there is no W'"
    return None


def as_matrices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter's tensors as those of a matrix: kernels flattened, cores multiplied out.

    All but a factor of LoKr on a 1-D convolution, which PEFT multiplies in another order; see ``lokr``.
    """
    found = dict(state)
    for key, value in state.items():
        if value.ndim > 2 and FLAT.fullmatch(key) and not (key == "lokr_w2" and value.ndim == 3):
            found[key] = value.flatten(1)
    for core, (a, b) in CORES.items():
        if core in found and a in found and b in found:
            found[a], found[b] = untucked(found.pop(core), found[a], found[b])
    return found


def as_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that ``as_matrices`` gives, of LoKr's factor too."""
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = {key: tuple(value.shape) for key, value in as_matrices(state).items()}
    if len(found.get("lokr_w2", ())) == 3:
        out, into, places = found["lokr_w2"]
        found["lokr_w2"] = out, into * places
    return found


def kernel_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return (k…) of a convolution's adapter, () where its tensors do not tell.

    Example:
        >>> kernel_of({"lora_A": (4, 8, 3, 3), "lora_B": (16, 4, 1, 1)}), kernel_of({"lora_A": (4, 8)})
        ((3, 3), ())
    """
    found = [s[2:] for key, s in shapes.items() if len(s) > 2 and (key in CORES or FLAT.fullmatch(key))]
    return max(found, key=math.prod, default=())

"""GaLore: full fine-tuning whose optimizer sees the gradient of each target through a low-rank projection."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from deltaw.adapters.errors import DataError, OptionError
from deltaw.adapters.methods.full import FullFineTuning
from deltaw.adapters.methods.lora_plus import parameter_groups
from deltaw.adapters.modules import linear_modules
from deltaw.adapters.patterns import matching

PROJECTIONS = ("std", "reverse_std", "right", "left", "full")


@dataclass(frozen=True, kw_only=True)
class GaLore(FullFineTuning):
    r"""Gradient low-rank projection: every parameter trains, the optimizer's state of a target is low-rank.

        G = U Σ Vᵀ (every T steps),  P = V_r (out ≥ in) or U_r
        W ← W − η·γ · Adam(G P) Pᵀ,   or   W − η·γ · P Adam(Pᵀ G)

    One step moves a target by rank r at most; over the steps, as P changes, by more. What is no target trains under
    plain AdamW. Nothing is injected: ``galore_optimizer`` makes the optimizer, which is the authors' own.

    Arguments:
        rank: r, of the projection.
        update_proj_gap: T, steps between two projections.
        scale: γ (the paper's α). 0.25 is the library's default; for GLUE the authors' script has 4 at rank 4.
        proj_type: Which side is projected: "std" the shorter, "reverse_std" the longer, "right" (in), "left" (out), or
            "full" for both.

    Raises:
        OptionError: An option is out of its range.

    Source:
        Zhao et al. 2024, algorithm 2; the package galore-torch, ``GaLoreAdamW``.
    """

    name = "galore"
    title = "GaLore"
    formula = "every weight is trained, the gradients of the targets projected to rank r"
    source = "Zhao et al. 2024"
    counts = "all of the model"
    look = ("#666666", "s")

    rank: int = 8
    update_proj_gap: int = 200
    scale: float = 0.25
    proj_type: str = "std"

    def __post_init__(self) -> None:
        self.take_whole_numbers(rank=1, update_proj_gap=1)
        if not 0 < self.scale < math.inf:
            raise OptionError(f"scale must be a number above 0, not {self.scale!r}")
        if self.proj_type not in PROJECTIONS:
            raise OptionError(f"proj_type must be one of {', '.join(PROJECTIONS)}, not {self.proj_type!r}")

    @override
    def check_shape(self, out_features: int, in_features: int, where: str) -> None:
        """Raise where the rank is above the smaller side of the matrix."""
        # With reverse_std the library tells the sides apart by their sizes; equal ones it multiplies the wrong way.
        clash = self.proj_type == "reverse_std" and out_features != in_features
        highest = min(out_features, in_features) - clash
        if self.rank > highest:
            raise OptionError(
                f"rank {self.rank} is too high for module {where!r} ({out_features} × {in_features}) with "
                f"proj_type {self.proj_type!r}; choose a rank from 1 to {highest}"
            )

    @override
    def check_available(self) -> None:
        load_galore()

    @override
    def optimizer(self, model: nn.Module, targets: Sequence[str], lr: float, **adamw: Any) -> torch.optim.Optimizer:
        return galore_optimizer(model, self, targets, lr, **adamw)


def galore_optimizer(
    model: nn.Module,
    method: GaLore,
    targets: Sequence[str],
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Return galore-torch's AdamW over a model: the targets projected, all other trainable parameters not.

    Arguments:
        model: A plain model.
        method: The options.
        targets: Glob patterns over the names of linear layers.
        lr, betas, eps, weight_decay: AdamW's; vectors have no weight decay.

    Raises:
        DataError: galore-torch is not installed.
        TargetError: A pattern matches no linear layer.
    """
    adamw = load_galore()
    layers = dict(linear_modules(model))
    projected = {id(layers[name].get_parameter("weight")) for name in matching(layers, targets, "target")}
    options = method.options()
    groups: list[dict[str, Any]] = []
    for group in parameter_groups(model, lr, weight_decay):
        plain = [parameter for parameter in group["params"] if id(parameter) not in projected]
        low = [parameter for parameter in group["params"] if id(parameter) in projected]
        groups += [group | {"params": plain}] if plain else []
        groups += [group | {"params": low} | options] if low else []
    optimizer: torch.optim.Optimizer = adamw(groups, lr=lr, betas=betas, eps=eps, no_deprecation_warning=True)
    return optimizer


def load_galore() -> Any:
    """Return galore-torch's ``GaLoreAdamW``.

    Raises:
        DataError: It is not installed; says how to.
    """
    try:
        from galore_torch import GaLoreAdamW
        from galore_torch.galore_projector import GaLoreProjector
    except ImportError as error:
        raise DataError(f"galore needs the package galore-torch: pip install 'deltaw[galore]' ({error})") from None
    # The optimizer's state holds these objects; so torch.load reads them again from an interrupted run.
    torch.serialization.add_safe_globals([GaLoreProjector])
    return GaLoreAdamW

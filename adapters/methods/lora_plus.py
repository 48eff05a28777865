"""LoRA+: LoRA whose B learns λ times as fast as its A."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.methods.lora import LoRA
from deltaw.adapters.modules import adapted


@dataclass(frozen=True, kw_only=True)
class LoRAPlus(LoRA):
    r"""LoRA with two learning rates.

        W' = W₀ + s·B A,    η_B = λ η_A

    The layer is LoRA's; the rates are the optimizer's, which ``parameter_groups`` tells of them.

    Arguments:
        rank, alpha, dropout, rank_stabilized: See ``LoRA``.
        lr_ratio: λ, the learning rate of B over that of A; the paper's advice is 16.

    Source:
        Hayou et al. 2024, LoRA+.

    Example:
        >>> import torch
        >>> from deltaw.adapters import LoRAPlus, inject, parameter_groups
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRAPlus(rank=2), targets=["0"])
        >>> optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-3))
        >>> [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
        [(0.001, 1), (0.016, 1)]
    """

    name = "lora+"
    title = "LoRA+"
    formula = "the same, B with λ times the learning rate of A"
    source = "Hayou et al. 2024"
    counts = "r·(out + in)"
    look = ("#0072B2", "P")

    lr_ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lr_ratio < math.inf:
            raise OptionError(f"lr_ratio must be a number above 0, not {self.lr_ratio!r}")

    @override
    def rate_factors(self) -> dict[str, float]:
        """λ for B."""
        return {"lora_B": self.lr_ratio}


def parameter_groups(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Return a model's trainable parameters as groups for any torch optimizer, each at its method's learning rate.

    Every trainable parameter is in exactly one group. The groups at ``lr`` itself come first, so that what logs the
    first group's rate logs ``lr``.

    Arguments:
        model: With or without adapted layers.
        lr: Learning rate; of LoRA+'s B it is λ lr, see ``Method.rate_factors``.
        weight_decay: Of matrices; vectors (biases, norms, magnitudes) have none.

    Example:
        >>> import torch
        >>> [group["weight_decay"] for group in parameter_groups(torch.nn.Linear(3, 2), lr=0.1, weight_decay=0.01)]
        [0.01, 0.0]
    """
    factors = {
        id(layer.tensor(name)): factor
        for layer in adapted(model).values()
        for name, factor in layer.method.rate_factors().items()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((factors.get(id(parameter), 1.0), decay), []).append(parameter)
    return [
        {"params": groups[factor, decay], "lr": factor * lr, "weight_decay": decay}
        for factor, decay in sorted(groups, key=lambda key: key[0] != 1.0)
    ]

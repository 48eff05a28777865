"""AdaLoRA: triplets of singular value and vectors, of which the least important are pruned in training."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError, TargetError
from deltaw.adapters.linear.low_rank import low_rank_linear
from deltaw.adapters.method import Layer, RankedMethod, Shape, State
from deltaw.adapters.modules import adapted
from deltaw.adapters.sharded import full, is_sharded

NAMES = ("lora_A", "lora_B", "lora_E")  # Q, P and Λ; the names are the authors', and PEFT's


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(RankedMethod):
    r"""Adaptive budget allocation.

        W' = W₀ + s·P Λ Q,    P (out, r), Λ = diag(λ_1, …, λ_r), Q (r, in),    s = α / r

    Training begins with r triplets a matrix. After each of its optimizer steps a ``RankAllocator`` sets the λ of the
    triplets that matter least, among those of all matrices, to zero, until ``target_rank`` are left on average. Pruned
    ones go on being trained between two prunings, so they can come back. ``deltaw train`` has an allocator made; a loop
    of one's own makes it, and adds ``penalty(model)`` to its loss:

        γ · mean over all P and Q of ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F

    Λ starts at zero, P and Q normal with standard deviation 0.02, so W' = W₀ at the start. Trainable: r·(out + in + 1).
    The rank of ΔW over the steps is the number of λ that are not zero: ``deltaw rank`` shows it.

    Arguments:
        rank: r, at the start.
        alpha, dropout: See ``RankedMethod``.
        target_rank: Average rank of a matrix at the end; ``None`` for 2r/3, so that the first budget is 1.5 times the
            last.
        warmup_share, final_share: The shares t_i/T and t_f/T of the steps before the pruning begins and after it ends;
            on CoLA the paper has 800 and 3,500 of 6,700 steps.
        interval: ΔT, steps between two prunings.
        beta1, beta2: Of the moving means of sensitivity and uncertainty.
        orthogonality: γ.

    Raises:
        OptionError: An option is out of its range.

    Source:
        Zhang et al. 2023, "AdaLoRA", equations 3 to 12 and algorithm 1. Equation 4 sums squared norms; the authors'
        code, for which γ was chosen, takes the mean of norms, as here. Equation 12 as it is printed begins above b(0);
        the code's 1 − (t − t_i)/(T − t_i − t_f) does not.
    """

    name = "adalora"
    title = "AdaLoRA"
    formula = "W₀ + s·P Λ Q, the least important λ pruned in training"
    source = "Zhang et al. 2023"
    counts = "r·(out + in + 1)"
    look = ("#88CCEE", "X")

    rank: int = 12
    target_rank: int | None = None
    warmup_share: float = 0.1
    final_share: float = 0.5
    interval: int = 10
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.take_whole_numbers(target_rank=1, interval=1)
        if self.target_rank is not None and self.target_rank > self.rank:
            raise OptionError(f"target_rank {self.target_rank} is above the rank {self.rank} at the start")
        for name in ("warmup_share", "final_share"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{name} must lie in [0, 1), not {getattr(self, name)!r}")
        if not self.warmup_share + self.final_share < 1:
            raise OptionError("warmup_share and final_share together must be below 1: in between the ranks are set")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise OptionError(f"{name} must lie between 0 and 1, not {getattr(self, name)!r}")
        if not 0 <= self.orthogonality < math.inf:
            raise OptionError(f"orthogonality must be a number of at least 0, not {self.orthogonality!r}")

    @property
    def last_rank(self) -> int:
        """The average rank at the end."""
        return max(1, 2 * self.rank // 3) if self.target_rank is None else self.target_rank

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """Q (r, in), P (out, r), λ (r, 1)."""
        pair: dict[str, Shape] = {"lora_A": (self.rank, in_features), "lora_B": (out_features, self.rank)}
        return pair | {"lora_E": (self.rank, 1)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """P and Q normal, Λ zero."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.02).to(base.dtype)

        rows, columns = base.shape
        return {
            "lora_A": normal(self.rank, columns),
            "lora_B": normal(rows, self.rank),
            "lora_E": base.new_zeros(self.rank, 1),
        }

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W₀ + s·P Λ Q."""
        return base + self.update(base, state)

    @override
    def update(self, base: Tensor, state: State) -> Tensor:
        """s·P Λ Q."""
        del base
        return self.scaling * (state["lora_B"] @ (state["lora_E"] * state["lora_A"]))

    @override
    def factors(self, base: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Return U = s·P Λ and V = Q."""
        del base
        return self.scaling * state["lora_B"] * state["lora_E"].T, state["lora_A"]

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """LoRA's forward with B = P Λ."""
        A, B, E = (layer.tensor(name) for name in NAMES)
        dropout = self.dropout if layer.training else 0.0
        return low_rank_linear(x, layer.base, layer.bias, A, B * E.T, self.scaling, dropout)

    @override
    def penalty(self, layers: Sequence[Layer]) -> Tensor | None:
        """γ · mean of ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F."""
        if not self.orthogonality:
            return None
        found = []
        for layer in layers:
            for factor in (layer.tensor("lora_A"), layer.tensor("lora_B").T):
                identity = torch.eye(self.rank, dtype=factor.dtype, device=factor.device)
                found.append(torch.linalg.matrix_norm(factor @ factor.T - identity))
        return self.orthogonality * torch.stack(found).mean()

    @override
    def follow(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Have the ranks set by a ``RankAllocator``."""
        RankAllocator(model, optimizer, total_steps)


class RankAllocator:
    """Sets the ranks of a model's AdaLoRA layers after each step of an optimizer.

    For each entry w of P, Λ and Q the sensitivity |w ∂L/∂w| is taken before a step, with the gradient that the step
    uses, and smoothed (equations 8 to 10):

        Ī ← β₁ Ī + (1 − β₁) |w ∂L/∂w|,    Ū ← β₂ Ū + (1 − β₂) ||w ∂L/∂w| − Ī|

    A triplet's importance is the Ī·Ū of its λ, plus the mean Ī·Ū of its column of P, plus that of its row of Q
    (equations 7 and 11). After a step, only the b(t) most important keep their λ (equation 6), where b(t) falls from
    all of them at t_i to its last value at T − t_f by a cubic (equation 12), every ΔT steps in between. From T − t_f on
    those that are left stay the same.

    Ī, Ū and what is left at the end are part of the optimizer's state, so they are in its ``state_dict``, and training
    goes on from there as if it had not been interrupted.

    Arguments:
        model: With adapted layers of ``AdaLoRA``.
        optimizer: Of all their parameters.
        total_steps: T, of the whole training.

    Raises:
        TargetError: The model has no such layer, or their options differ.
        OptionError: T is no whole number of at least 1.

    Example:
        >>> from deltaw.adapters import AdaLoRA, RankAllocator, adapted, inject, penalty
        >>> model = inject(nn.Sequential(nn.Linear(6, 4)), AdaLoRA(rank=3, target_rank=1, interval=1), targets=["0"])
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        >>> allocator = RankAllocator(model, optimizer, total_steps=10)
        >>> for _ in range(10):
        ...     (model(torch.ones(2, 6)).square().mean() + penalty(model)).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> allocator.ranks()
        {'0': 1}
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self._layers: dict[str, Layer] = {
            name: layer for name, layer in adapted(model).items() if isinstance(layer.method, AdaLoRA)
        }
        methods = [layer.method for layer in adapted(model).values() if isinstance(layer.method, AdaLoRA)]
        if not methods:
            raise TargetError("the model has no layer of AdaLoRA whose rank could be set")
        self._method = methods[0]
        others = {(method.last_rank, method.interval, method.beta1, method.beta2) for method in methods}
        if len(others) > 1:
            raise TargetError("the layers of AdaLoRA differ in options of their common budget; give them the same")
        self._total = whole_number("total_steps", total_steps, 1)
        self._optimizer = optimizer
        self._before: dict[int, Tensor] = {}  # sensitivities, from before a step to after it
        optimizer.register_step_pre_hook(self._begin)
        optimizer.register_step_post_hook(self._end)

    def ranks(self) -> dict[str, int]:
        """Return how many λ of each layer are not zero."""
        return {name: int(full(layer.tensor("lora_E")).count_nonzero()) for name, layer in self._layers.items()}

    def budget(self, step: int) -> int:
        """Return b(t), the number of triplets that are kept after step t = 1, …, T."""
        method, layers = self._method, len(self._layers)
        first = sum(len(full(layer.tensor("lora_E"))) for layer in self._layers.values())
        last = min(method.last_rank * layers, first)
        begin, end = self._begin_and_end()
        if step <= begin:
            return first
        if step >= end:
            return last
        return int(last + (first - last) * (1 - (step - begin) / (end - begin)) ** 3)

    def _begin_and_end(self) -> tuple[int, int]:
        """t_i and T − t_f."""
        begin = int(self._method.warmup_share * self._total)
        return begin, max(self._total - int(self._method.final_share * self._total), begin + 1)

    def _triplets(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for layer in self._layers.values():
            A, B, E = (layer.tensor(name) for name in NAMES)
            yield A, B, E

    @torch.no_grad()
    def _begin(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Take the sensitivities at w(t), as algorithm 1 does before the update."""
        del optimizer, args, kwargs
        parameters = [parameter for triplet in self._triplets() for parameter in triplet]
        self._before = {id(p): (p * p.grad).abs() for p in parameters if p.grad is not None}

    @torch.no_grad()
    def _end(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Smooth them, and prune if it is time."""
        del args, kwargs
        step = 0
        for triplet in self._triplets():
            for parameter in triplet:
                if (sensitivity := self._before.get(id(parameter))) is not None:
                    self._smooth(optimizer.state[parameter], sensitivity)
            step = max(step, int(optimizer.state[triplet[2]].get("allocations", 0)))
        self._before = {}
        begin, end = self._begin_and_end()
        if step < end and (step <= begin or step % self._method.interval):
            return
        if step <= end or any("kept" not in optimizer.state[E] for _, _, E in self._triplets()):
            self._choose(optimizer, self.budget(step))
        for _, _, E in self._triplets():
            E.mul_(optimizer.state[E]["kept"])

    def _smooth(self, state: dict[str, Any], sensitivity: Tensor) -> None:
        """Ī and Ū, in the optimizer's state of a parameter; they start at zero."""
        if "sensitivity" not in state:
            state["sensitivity"], state["uncertainty"] = torch.zeros_like(sensitivity), torch.zeros_like(sensitivity)
            state["allocations"] = 0
        state["allocations"] += 1
        mean: Tensor = state["sensitivity"].lerp_(sensitivity, 1 - self._method.beta1)
        state["uncertainty"].lerp_((sensitivity - mean).abs(), 1 - self._method.beta2)

    def _choose(self, optimizer: torch.optim.Optimizer, budget: int) -> None:
        """Keep the most important triplets of all layers; of equal ones the first."""
        scores = []
        for A, B, E in self._triplets():
            a, b, e = (full(_score(optimizer.state[p], p)) for p in (A, B, E))
            scores.append(e.flatten() + a.mean(1) + b.mean(0))
        kept = torch.zeros(sum(map(len, scores)), dtype=scores[0].dtype, device=scores[0].device)
        kept[torch.cat(scores).argsort(descending=True, stable=True)[:budget]] = 1
        parts = torch.split(kept, [len(score) for score in scores])
        for (_, _, E), part in zip(self._triplets(), parts, strict=True):
            optimizer.state[E]["kept"] = _sharded_as(E, part[:, None])


def _score(state: dict[str, Any], parameter: Tensor) -> Tensor:
    """Ī·Ū; zero where there never was a gradient."""
    if "sensitivity" not in state:
        return torch.zeros_like(parameter)
    found: Tensor = state["sensitivity"] * state["uncertainty"]
    return found


def _sharded_as(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return a tensor cut up over the processes as a parameter is."""
    if not is_sharded(parameter):
        return whole.to(parameter.device, parameter.dtype).contiguous()
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        raise TargetError("AdaLoRA's λ are cut up in a way that is not known; FSDP2 and tensor parallelism are")
    return distribute_tensor(whole.to(parameter.dtype), parameter.device_mesh, parameter.placements)

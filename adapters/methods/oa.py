"""Orthogonal Adaptation: LoRA whose frozen A is a task's own share of one orthogonal basis."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.method import State
from deltaw.adapters.methods.asylora import orthonormal_rows
from deltaw.adapters.methods.lora_fa import FrozenDown


@dataclass(frozen=True, kw_only=True)
class OrthogonalAdaptation(FrozenDown):
    r"""Orthogonal adaptation, for adapters that are merged by sum.

        W' = W₀ + s·B_p A_p,    A_p = rows p·r … p·r + r − 1 of an orthogonal O (in × in),  B_p = 0 at the start

    O follows from ``basis_seed`` and ``in`` alone, so separate trainings of different tasks use one basis, and

        A_p A_qᵀ = 0 for p ≠ q,

    which keeps tasks apart when their updates are added to one model: (Σ_q B_q A_q) A_pᵀ = B_p. A basis of ``in``
    vectors holds ⌊in / r⌋ tasks. Only the rows up to the task's own are made. Trainable: r·out.

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``.
        task: p, from 0.
        basis_seed: Seed of the shared basis.

    Raises:
        OptionError: ``task`` is negative, or (on injecting) the basis does not hold so many tasks.

    Source:
        Po et al. 2024, "Orthogonal adaptation for modular customization of diffusion models"; SBoRA, equations 2 and 3.
    """

    name = "oa"
    title = "OA"
    formula = "W₀ + s·B A, A the task's rows of one orthogonal basis"
    source = "Po et al. 2024; SBoRA, equations 2 and 3"
    counts = "r·out"
    look = ("#56B4E9", "D")

    task: int = 0
    basis_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.take_whole_numbers(task=0, basis_seed=0)

    @override
    def check_shape(self, out_features: int, in_features: int, where: str) -> None:
        """Raise where the rank or the number of tasks is too large."""
        super().check_shape(out_features, in_features, where)
        if (self.task + 1) * self.rank > in_features:
            raise OptionError(
                f"task {self.task} does not fit module {where!r}: its basis of {in_features} vectors holds "
                f"{in_features // self.rank} tasks of rank {self.rank}, 0 to {in_features // self.rank - 1}; "
                "choose a lower rank or task"
            )

    @override
    def start(self, base: Tensor, generator: torch.Generator, given: State) -> dict[str, Tensor]:
        """B zero, A the task's rows."""
        del generator
        A = given.get(f"basis_{base.shape[1]}")
        if A is None:
            A = self._rows(base.shape[1])
        return {"lora_B": base.new_zeros(base.shape[0], self.rank), "lora_A": A.to(base.dtype)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The start without anything given."""
        return self.start(base, generator, {})

    @override
    def shared(self, shapes: Sequence[tuple[int, int]], generator: torch.Generator) -> dict[str, Tensor]:
        """The task's rows for each number of inputs, which all layers with that many inputs have in common."""
        del generator
        return {f"basis_{columns}": self._rows(columns) for columns in {columns for _, columns in shapes}}

    def _rows(self, in_features: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.basis_seed)
        rows = orthonormal_rows((self.task + 1) * self.rank, in_features, generator)
        return rows[self.task * self.rank :].clone()  # the other tasks' rows are not kept

"""Whole models, one a step: what ``Trainer`` and ``save_pretrained`` leave, files with a step in their name, a pair."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.base import GIVE, Base
from deltaw.analysis.records.layout import matrices
from deltaw.analysis.records.source import Shape, Source, State, fitting
from deltaw.analysis.records.storage import Place
from deltaw.analysis.records.tensors import Tensors

OPEN_AT_ONCE = 2  # models whose headers are kept; a pair of steps is what is looked at


class Models(Source):
    """The checkpoints of a model that was saved whole.

    Arguments:
        where: The folder, for messages.
        format: What it was recognised as.
        models: What opens the model of a step, by step.
        config: The model's ``config.json``.
        base: W₀, or ``None``.
        everything: Show embeddings and output heads too.
        log: What was logged, a mapping a line.
        info: What else is known.

    Raises:
        RecordError: The first checkpoint is damaged, or has no matrix of a linear layer.
    """

    def __init__(
        self,
        where: str,
        format: str,
        models: Mapping[int, Callable[[], Tensors]],
        config: Mapping[str, Any],
        base: Base | None,
        *,
        everything: bool = False,
        log: list[dict[str, float]] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.where, self.format, self.method = where, format, "ft"
        self.steps, self.config, self.info = sorted(models), dict(config), dict(info or {})
        self._models, self._base, self._log = dict(models), base, log or []
        self._open: OrderedDict[int, Tensors] = OrderedDict()
        first = self._tensors(self.steps[0])
        self._parts = matrices(first, config, everything=everything)
        if not self._parts:
            raise RecordError(f"{first.where}: holds no matrix of a linear layer in a floating dtype")
        self.shapes: dict[str, Shape] = {module: part.shape for module, part in self._parts.items()}

    def _tensors(self, step: int) -> Tensors:
        if step not in self._open:
            self._open[step] = self._models[step]()
            while len(self._open) > OPEN_AT_ONCE:
                self._open.popitem(last=False)
        self._open.move_to_end(step)
        return self._open[step]

    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return W' (out, in) as it was saved."""
        self.check(module, step)
        tensors, part = self._tensors(step), self._parts[module]
        weight = fitting(tensors.where, module, part.read(tensors), part.shape)
        return weight if dtype is None else weight.to(dtype)

    def shape_at(self, module: str, step: int) -> Shape | None:
        """Return (out, in) as the checkpoint of a step has it, ``None`` where it lacks the module."""
        tensors, part = self._tensors(step), self._parts[module]
        if part.tensor not in tensors.names():
            return None
        shape = tensors.shape(part.tensor)
        if len(shape) < 2:
            return None
        return (shape[-1], shape[-2]) if part.turned else (shape[-2], shape[-1])

    def state(self, module: str, step: int) -> State:
        """Return {"weight": the matrix}."""
        return {"weight": self.weight(module, step)}

    @property
    def base_from(self) -> str | None:
        """Where W₀ comes from, or ``None`` where none was given."""
        return None if self._base is None else self._base.where

    def base(self, module: str) -> Tensor:
        """Return W₀ (out, in) of the base that was given."""
        self.check(module)
        if self._base is None:
            raise RecordError(f"{self.where}: holds no base weights, so there is no W₀ of {module}; {GIVE}")
        return self._base.read(module, self.shapes[module])

    def rounding(self, module: str, step: int) -> torch.dtype:
        """Return the dtype of the saved matrix."""
        self.check(module, step)
        return self._tensors(step).dtype(self._parts[module].tensor)

    def scalars(self) -> list[dict[str, float]]:
        """Return what was logged."""
        return self._log


def trainer_log(place: Place) -> tuple[int | None, list[dict[str, float]]]:
    """Return the step and the log of a ``trainer_state.json``: step, epoch, loss, scores; nothing where there is none.

    Raises:
        RecordError: The file is damaged.
    """
    state = place.mapping("trainer_state.json")
    step, history = state.get("global_step"), state.get("log_history", [])
    if (step is not None and type(step) is not int) or not isinstance(history, list):
        raise RecordError(f"{place.file('trainer_state.json')}: is damaged (global_step {step!r:.40})")
    rows: dict[tuple[str, int], dict[str, float]] = {}  # of one step: its loss and, apart, its scores
    for number, line in enumerate(history):
        if not isinstance(line, dict):
            raise RecordError(f"{place.file('trainer_state.json')}: is damaged, a line of its log is {line!r:.40}")
        numbers = {str(k): float(v) for k, v in line.items() if isinstance(v, (int, float)) and not _too_large(v)}
        at = line.get("step")
        rows.setdefault(("step", at) if type(at) is int else ("line", number), {}).update(numbers)
    return step, list(rows.values())


def step_in(names: list[str]) -> dict[int, str]:
    """Return the files by the step that their names hold: the number after "step" and the like, or the only one.

    Raises:
        RecordError: A name holds no number, or two hold the same; names them.

    Example:
        >>> step_in(["w-epoch1-step20.safetensors", "w-epoch1-step40.safetensors"])
        {20: 'w-epoch1-step20.safetensors', 40: 'w-epoch1-step40.safetensors'}
    """
    found: dict[int, str] = {}
    for name in names:
        stem = re.sub(r"\.[A-Za-z]+$", "", name)
        named = re.findall(r"(?:step|checkpoint|ckpt|iter|iteration)s?[-_=]?(\d{1,18})(?!\d)", stem, re.IGNORECASE)
        numbers = named[-1:] or re.findall(r"\d+", stem)
        if len(numbers) != 1 or len(numbers[0]) > 18:
            raise RecordError(f"{name!r} does not say its step; name the files as step-100{name[len(stem) :]}")
        step = int(numbers[0])
        if step in found:
            raise RecordError(f"{found[step]!r} and {name!r} both say step {step}")
        found[step] = name
    return found


def _too_large(value: float) -> bool:
    return isinstance(value, bool) or (isinstance(value, int) and abs(value) >= 2**63)

"""Adapters of another tool than PEFT: one file, or one a step."""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.foreign.base import GIVE, Base, BaseError
from deltaw.analysis.records.foreign.formats.base_parts import BaseParts
from deltaw.analysis.records.foreign.formats.layers import Found, Layer
from deltaw.analysis.records.foreign.formats.naming import Names
from deltaw.analysis.records.foreign.model_reader import place_of
from deltaw.analysis.records.source import Place, Shape, Source, State
from deltaw.analysis.records.storage.tensors import Renamed, Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deltaw.adapters.method import ScaledFactors, ScaledLowRank
    from deltaw.adapters.peft.formulas.settings import Factors

OPEN_NAMES = 2**17  # of tensors that are kept, in all
MODULE = "module."
ZERO = "α is 0 in the settings beside it, so ΔW = 0 whatever the factors are"
OF_KERNELS = ("down", "mid", "diff", "t1", "t2", "w2")  # parts that have a convolution's (k…) as their last sides
NAMED = 8  # layers that a message names
T = TypeVar("T")
logger = logging.getLogger(__name__)


class AdapterFormat(NamedTuple):
    """How a tool's adapters are read.

    Arguments:
        name: For tables and ``--json``, as "kohya".
        title: For messages, as "kohya's LoRA (sd-scripts)".
        advice: What to do where it cannot be read.
        read: From a file's tensors and what stands beside them to its layers.
        shown: The name of a layer that is shown, from that in the file and the base's names.
    """

    name: str
    title: str
    advice: str
    read: Callable[[Tensors, Mapping[str, Any]], Found]
    shown: Callable[[str, Names], str] = lambda name, _: name


class _File(NamedTuple):
    tensors: Tensors
    layers: dict[str, Layer]


class ForeignAdapters(Source):
    """W' and ΔW of the adapters of another tool.

    Arguments:
        where: The file or folder, for messages.
        form: Its format.
        models: What opens the file of a step, by step.
        first: The tensors of the first step.
        settings: What stands beside the file of a step, by step.
        base: W₀, or ``None``.
        log: What was logged, a mapping a line.
        steps_known: Whether the files say the steps.

    Raises:
        RecordError: The first file is not whole, or holds no layer.
    """

    def __init__(
        self,
        where: str,
        form: AdapterFormat,
        models: Mapping[int, Callable[[], Tensors]],
        first: Tensors,
        settings: Mapping[int, Mapping[str, Any]],
        base: Base | None,
        *,
        log: list[dict[str, float]] | None = None,
        steps_known: bool = True,
    ) -> None:
        self.where, self.format, self.steps_known = where, form.name, steps_known
        self.steps, self._models, self._settings = sorted(models), dict(models), settings
        self._form, self._base, self._log = form, base, log or []
        self.config = {} if base is None else base.config
        self._open: OrderedDict[int, _File] = OrderedDict()
        first = _unwrapped(first)
        found = self._found(self.steps[0], first)
        self._open[self.steps[0]] = _File(first, found.layers)
        own = Base(Renamed(first, found.own), {}) if found.own else None
        names = Names(() if base is None else base.names)
        shown = {name: form.shown(name, names) for name in found.layers}
        taken = Counter(shown.values())  # two of one name keep the file's
        self._stored = {plain if taken[plain] == 1 else name: name for name, plain in shown.items()}
        self._parts = BaseParts(base, own, self._stored)
        self.shapes: dict[str, Shape] = {}
        left_out = dict(found.left_out)
        for module, name in self._stored.items():
            shape = self._shape(module, found.layers[name], first)
            if isinstance(shape, str):
                left_out[module] = shape
            else:
                self.shapes[module] = shape
        self._labels = self._named(first, found.layers)
        self.method = Counter(self._labels.values()).most_common(1)[0][0] if self._labels else "lora"
        said = {key: value for key, value in first.metadata().items() if key != "format"}
        self.info: dict[str, Any] = {"adapter": form.title, "settings_beside": found.settings, "metadata": said}
        plain = [layer for layer in found.layers.values() if not {"alpha", "magnitude"} & set(layer.tensors)]
        zero = len(plain) == len(found.layers) and all(0 in (layer.scaling, layer.alpha) for layer in plain)
        notes = [*found.notes, ZERO] if zero and plain else found.notes
        if notes:
            self.info["notes"] = notes
            for note in notes:
                logger.warning("%s: %s", where, note)
        self._tell(left_out, first.where)

    def _found(self, step: int, tensors: Tensors) -> Found:
        try:
            return self._form.read(tensors, self._settings.get(step, {}))
        except RecordError as error:
            reason = str(error).removeprefix(f"{tensors.where}: ")
            held = f"{tensors.where}: holds {self._form.title}, which cannot be read"
            raise RecordError(f"{held}: {reason}; {self._form.advice}") from None

    def _shape(self, module: str, layer: Layer, tensors: Tensors) -> Shape | str:
        """(out, in·k…) by the tensors, else by the base; or why there is none."""
        from deltaw.analysis.records.foreign.formats.arithmetic import sides

        shapes = {role: tensors.shape(name) for role, name in layer.tensors.items()}
        try:
            shape = sides(layer, shapes)
        except (RecordError, IndexError, KeyError) as error:
            raise RecordError(
                f"{tensors.where}: holds {self._form.title}; of {module:.200} {error}; the file is damaged"
            ) from None
        if shape is None:
            shape = self._parts.shape(module)
        if shape is None:
            return f"its base tells its shape; {GIVE}" if self._base is None else self._parts.why_not(module)
        return shape if min(shape) > 0 else "it has no entries"

    def _named(self, tensors: Tensors, layers: Mapping[str, Layer]) -> dict[str, str]:
        from deltaw.analysis.records.foreign.formats.arithmetic import label

        found = {}
        for module, (out, _) in self.shapes.items():
            layer = layers[self._stored[module]]
            found[module] = label(layer, {r: tensors.shape(name) for r, name in layer.tensors.items()}, out)
        return found

    def _tell(self, left_out: Mapping[str, str], file: str) -> None:
        reasons: dict[str, list[str]] = {}
        for module, reason in left_out.items():
            reasons.setdefault(reason, []).append(module)
        told = "; ".join(
            f"{', '.join(modules[:NAMED])}{', …' if len(modules) > NAMED else ''}: {reason}"
            for reason, modules in reasons.items()
        )
        if not self.shapes:
            raise RecordError(f"{file}: holds {self._form.title}, of which no layer is read ({told or 'it has none'})")
        if left_out:
            self.info["left_out"] = list(left_out)
            logger.warning("%s: %d left out, %s", self.where, len(left_out), told)

    def _file(self, step: int) -> _File:
        if step not in self._open:
            tensors = _unwrapped(self._models[step]())
            self._open[step] = _File(tensors, self._found(step, tensors).layers)
            while len(self._open) > max(2, OPEN_NAMES // max(1, len(tensors.names()))):
                self._open.popitem(last=False)
        self._open.move_to_end(step)
        return self._open[step]

    def _layer(self, module: str, step: int) -> tuple[Layer, Tensors]:
        self.check(module, step)
        file, name = self._file(step), self._stored[module]
        if name not in file.layers:
            raise RecordError(f"{file.tensors.where}: has no adapter of {module}, which the first checkpoint has")
        return file.layers[name], file.tensors

    @override
    def state(self, module: str, step: int) -> State:
        """Return the adapter's tensors, by the part that each is."""
        layer, tensors = self._layer(module, step)
        found = {}
        for role, name in layer.tensors.items():
            stacked = layer.expert is not None and len(tensors.shape(name)) == 3
            found[role] = tensors.read(name, layer.expert if stacked else None)
        return found

    def _by(self, formula: Callable[[Layer, State], T], module: str, step: int, dtype: torch.dtype | None) -> T:
        """Return what a formula makes of a layer's tensors in a dtype; ``None`` leaves each in its own."""
        layer, tensors = self._layer(module, step)
        state = self.state(module, step)
        if dtype is not None:
            state = {role: value.to(dtype) for role, value in state.items()}
        try:
            return formula(layer, state)
        except BaseError:
            raise
        except (RecordError, RuntimeError, IndexError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
            reason = str(error).split("\n", 1)[0][:200]
            raise RecordError(f"{tensors.where}: the tensors of {module} do not go together ({reason})") from None

    def _delta(self, module: str, step: int, dtype: torch.dtype) -> Factors | Tensor:
        from deltaw.analysis.records.foreign.formats.arithmetic import update

        where, shape = self._file(step).tensors.where, self.shapes[module]
        found = self._by(
            lambda layer, t: update(layer, t, shape, lambda: self.base(module).to(dtype), where), module, step, dtype
        )
        self._fits(found, module, step)
        return found

    def _fits(self, found: Factors | Tensor, module: str, step: int) -> None:
        shape = (len(found[0]), found[1].shape[1]) if isinstance(found, tuple) else tuple(found.shape)
        if shape != self.shapes[module]:
            where = self._file(step).tensors.where
            raise RecordError(f"{where}: the update of {module} is {shape}, its layer {self.shapes[module]}")

    @override
    def update(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        found = self._delta(module, step, dtype or _float64())
        return found[0] @ found[1] if isinstance(found, tuple) else found

    @override
    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        layer, _ = self._layer(module, step)
        if layer.kind != "lora" or "magnitude" in layer.tensors:
            return None
        found = self._delta(module, step, dtype or self._dtype(module, step))
        return found if isinstance(found, tuple) else None

    @override
    def scaled_factors(self, module: str, step: int) -> ScaledFactors | None:
        from deltaw.analysis.records.foreign.formats.arithmetic import scaled

        found = self._by(scaled, module, step, None)
        if found is not None:
            self._fits((found.U, found.V), module, step)
        return found

    @override
    def scaled_low_rank(self, module: str, step: int, base: Tensor) -> ScaledLowRank | None:
        from deltaw.analysis.records.foreign.formats.arithmetic import form

        found = self._by(lambda layer, t: form(layer, t, base), module, step, _float64())
        if found is not None:
            self._fits((found.U, found.V), module, step)
        return found

    @override
    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        import torch

        from deltaw.adapters.layer import WIDENED

        layer, _ = self._layer(module, step)
        if layer.kind == "whole":
            found = self.state(module, step)["diff"].reshape(self.shapes[module])
            return found if dtype is None else found.to(dtype)
        base = self.base(module)
        dtype = dtype or torch.promote_types(WIDENED.get(base.dtype, base.dtype), self._dtype(module, step))
        return base.to(dtype) + self.update(module, step, dtype)

    def _dtype(self, module: str, step: int) -> torch.dtype:
        """The dtype in which the adapter is computed: its own, 16 bits widened."""
        import torch

        from deltaw.adapters.layer import WIDENED

        layer, tensors = self._layer(module, step)
        found = [d for d in map(tensors.dtype, layer.tensors.values()) if d.is_floating_point]
        return WIDENED.get(found[0], found[0]) if found else torch.float32

    @property
    @override
    def base_from(self) -> str | None:
        return self._parts.base_from(self.shapes)

    @override
    def base(self, module: str) -> Tensor:
        self.check(module)
        if not self._parts.given(module):
            raise BaseError(f"{self.where}: W₀ of {module} is needed and an adapter does not hold it; {GIVE}")
        return self._parts.read(module, self.shapes[module])

    @override
    def label(self, module: str) -> str:
        return self._labels[module]

    @override
    def rebuilt(self, module: str) -> bool:
        return self._file(self.steps[0]).layers[self._stored[module]].kind != "whole"

    @override
    def kernel(self, module: str) -> tuple[int, ...]:
        layer, tensors = self._layer(module, self.steps[0])
        shapes = [tensors.shape(layer.tensors[role]) for role in OF_KERNELS if role in layer.tensors]
        found = [shape[2:] for shape in shapes if len(shape) > 2 and layer.expert is None]
        return max(found, key=math.prod, default=()) or self._parts.kernel(module)

    @override
    def rounding(self, module: str, step: int) -> torch.dtype | None:
        layer, tensors = self._layer(module, step)
        if layer.kind in ("whole", "ia3") or "magnitude" in layer.tensors:  # they multiply W₀, or are W'
            return tensors.dtype(next(iter(layer.tensors.values())))
        return None

    @override
    def places(self, step: int | None) -> list[Place] | None:
        if step is None:
            base = [] if self._base is None else self._base.places
            own = self.places(self.steps[0]) if self._parts.has_own else []
            return None if base is None or own is None else [*base, *own]
        found = place_of(self._models[step])
        return None if found is None else [(found[0], None)]

    @override
    def described(self, module: str) -> str:
        return f"{self._file(self.steps[0]).layers[self._stored[module]]} {self.config}"

    @override
    def scalars(self) -> list[dict[str, float]]:
        return self._log


def _unwrapped(tensors: Tensors) -> Tensors:
    """The tensors without the ``module.`` that data-parallel training puts before all of their names."""
    if not all(name.startswith(MODULE) for name in tensors.names()):
        return tensors
    return Renamed(tensors, {name.removeprefix(MODULE): name for name in tensors.names()})


def _float64() -> torch.dtype:
    import torch

    return torch.float64

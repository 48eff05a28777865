"""Adapters that PEFT saved: one folder, or one a ``checkpoint-*/``."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.adapters.layer import WIDENED
from deltaw.adapters.method import Method, ScaledFactors, ScaledLowRank
from deltaw.adapters.peft.formulas.settings import Factors, Settings
from deltaw.adapters.peft.formulas.table import FORMULAS, Formula
from deltaw.adapters.peft.names import FIXED, LEAVES_THE_BASE, OUT_PROJ, PREFIX, ROOT, SHARED_THETA
from deltaw.adapters.peft.targets import copied_layers, targeted
from deltaw.analysis.names import is_embedding
from deltaw.analysis.records.foreign.base import GIVE, Base, BaseError, BaseLike, base_named, open_base
from deltaw.analysis.records.foreign.peft_experts import Parameter, needing_base, parameters
from deltaw.analysis.records.foreign.peft_kernels import READ, as_matrices, as_shapes, kernel_of, why_not
from deltaw.analysis.records.foreign.peft_settings import by_reason, method_name, noted, read_settings
from deltaw.analysis.records.foreign.peft_tensors import AdapterFile, embedding_as_linear, not_linear, read_adapter
from deltaw.analysis.records.source import Place, Shape, Source, State, fitting
from deltaw.analysis.records.storage.files import Storage
from deltaw.analysis.records.storage.tensors import Renamed

OPEN_NAMES = 2**17  # of tensors that are kept, in all: a table goes through all steps of each module
TELLS = ("LORA", "ADALORA", "LOHA", "LOKR", "DELORA")  # types whose tensors have the layer's own sides
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Adapters(Source):
    """W' and ΔW of PEFT's adapters, by ``FORMULAS``.

    Arguments:
        where: The folder, for messages.
        places: The folder of each step.
        base: W₀, or ``None``: then the model that the configuration names is taken from Hugging Face's cache, if it is
            there, and else what needs no W₀ can be read.
        log: What was logged, a mapping a line.

    Raises:
        RecordError: A folder is damaged, or of a type that cannot be read; says why.
    """

    format = "peft"

    def __init__(self, where: str, places: Mapping[int, Storage], base: BaseLike, log: list[dict[str, float]]) -> None:
        self.where, self.steps, self._places, self._log = where, sorted(places), dict(places), log
        self._open: OrderedDict[int, AdapterFile] = OrderedDict()
        self._settings: dict[str, Any] = read_settings(places[self.steps[0]])
        self._formula: Formula = FORMULAS[kind := self._settings["peft_type"]]
        self.method = method_name(kind, self._settings)
        self.info = {"peft": self._settings, **noted(self._settings, where)}
        self._base: Base | None = open_base(base if base is not None else base_named(self._settings))
        self.config = {} if self._base is None else self._base.config
        self._copies = copied_layers(self._settings, where)
        file = self._checkpoint(self.steps[0])
        if not file.modules:
            raise RecordError(f"{file.tensors.where}: has no tensor of a {kind} adapter")
        self._saved, self._attention = file.whole, file.attention
        self._dense = False  # whether updates were seen to be no products
        self._own_base = Base(Renamed(file.tensors, file.base), self.config) if file.base else None
        if self._base is not None:
            self._base.expect(self._copies(module) for module in (*file.modules, *file.whole))
        stored = {module: file.shapes(module) for module in file.modules}
        self.shapes: dict[str, Shape] = {}
        self._parameters: dict[str, Parameter] = {}
        left_out = dict(file.left_out)
        targets = self._settings.get("target_parameters") if kind == "LORA" else None
        if targets and self._base is None:
            told_by_base = needing_base(stored, targets, where)
            if len(told_by_base) < len(stored):  # the others can do without
                left_out |= dict.fromkeys(told_by_base, f"its base tells which parameters these are; {GIVE}")
                stored = {module: shapes for module, shapes in stored.items() if module not in told_by_base}
        if targets:
            self._parameters, used = parameters(stored, targets, self._base, self._copies, where)
            self.shapes |= {module: parameter.shape for module, parameter in self._parameters.items()}
            stored = {module: shapes for module, shapes in stored.items() if module not in used}
        for module, shapes in stored.items():
            reason = not_linear(shapes, self._settings, LEAVES_THE_BASE)
            shape = self._shape(module, shapes) if reason is None else reason
            if isinstance(shape, str):
                left_out[module] = shape
            else:
                self.shapes[module] = shape
        for module, name in self._saved.items():
            rows, columns = file.tensors.shape(name)
            source = self._base_of(module)
            self.shapes[module] = (rows, columns) if source is None else source.common(module, (rows, columns))
        self._adapted = {name: shape for name, shape in self.shapes.items() if name not in self._saved}
        self._tell(left_out, file.tensors.where)

    def _tell(self, left_out: Mapping[str, str], file: str) -> None:
        """Say once what is left out."""
        told = by_reason(left_out)
        if not self.shapes:
            raise RecordError(f"{file}: adapts no linear layer ({told})")
        if told:
            self.info["left_out"] = list(left_out)
            logger.warning("%s: %d left out, %s", self.where, len(left_out), told)

    def _shape(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> Shape | str:
        """(out, in) from the adapter where it tells, else from the base; or why there is none."""
        if "lora_embedding_A" in shapes:
            return shapes["lora_embedding_A"][1], shapes["lora_embedding_B"][0]
        shapes = as_shapes(shapes)
        found = None
        if self._formula.sides is not None and not self._settings.get("use_bdlora"):
            try:
                found = self._formula.sides(shapes)
            except (KeyError, IndexError):
                found = None
        if found is not None and self._settings.get("use_qalora"):
            size = self._settings.get("qalora_group_size")
            found = (found[0], found[1] * size) if type(size) is int and 0 < size < 2**20 else None
        base = self._base_of(module)
        part = None if base is None else base.find(self._copies(module))
        if part is not None:
            if part.kernel and self._settings["peft_type"] not in READ:
                return why_not(shapes, self._settings, LEAVES_THE_BASE) or ""
            tells = self._settings["peft_type"] in TELLS and not self._settings.get("use_qalora")
            return found if tells and found is not None else part.shape  # of a resized vocabulary, it differs
        if self._base is not None and found is None:
            return self._base.why_not(self._copies(module))
        if found is None:
            kind = self._settings["peft_type"]
            raise RecordError(
                f"{self.where}: a {kind} adapter does not tell the shape of {module}, its base does; {GIVE}"
            )
        return found

    def file(self, step: int) -> AdapterFile:
        """Return the tensors of a step, by module."""
        return self._checkpoint(step)

    def _checkpoint(self, step: int) -> AdapterFile:
        if step not in self._open:
            place = self._places[step]
            if step != self.steps[0]:
                settings = read_settings(place)
                for key in FIXED:
                    if settings.get(key) != self._settings.get(key):
                        raise RecordError(
                            f"{place.where}: {key} is {settings.get(key)!r:.60}, not as in the first checkpoint"
                        )
            kind = self._settings["peft_type"]
            file = read_adapter(place, kind, self._formula.prefix)
            if not file.modules and kind == "UNILORA" and ROOT + SHARED_THETA in file.tensors.names():
                shared = {module: {SHARED_THETA: ROOT + SHARED_THETA} for module in self._meant()}
                file = replace(file, modules=shared)
            self._open[step] = file
            while len(self._open) > max(2, OPEN_NAMES // max(1, len(file.tensors.names()))):
                self._open.popitem(last=False)
        self._open.move_to_end(step)
        return self._open[step]

    def _meant(self) -> list[str]:
        """The layers that the configuration means, where the file names none."""
        if self._base is None or not self._base.order:
            raise RecordError(
                f"{self.where}: its indices were not saved (save_indices was false) and follow from the model's order; "
                "give base as the model itself, or save the adapter with save_indices=True"
            )
        return targeted(self._settings, self._base.order, self.where)

    def state(self, module: str, step: int) -> State:
        """Return the adapter's tensors under PEFT's names, or {"weight": the matrix} of a module saved whole."""
        self.check(module, step)
        file = self._checkpoint(step)
        tensors, modules = file.tensors, file.modules
        if module in self._saved:
            if module not in file.whole:
                raise RecordError(f"{tensors.where}: lacks {module}, which the first checkpoint has")
            whole, shape = tensors.read(file.whole[module]), self.shapes[module]
            whole = whole[: shape[0]] if is_embedding(module) else whole  # of a resized vocabulary what both have
            return {"weight": fitting(tensors.where, module, whole, shape)}
        holder = self._holder(module)
        if holder not in modules:
            raise RecordError(f"{tensors.where}: has no adapter of {module}, which the first checkpoint has")
        state = {key: tensors.read(name) for key, name in modules[holder].items()}
        if "lora_embedding_A" in state:
            return embedding_as_linear(state)
        return self._parameters[module].of(state) if module in self._parameters else as_matrices(state)

    @override
    def new_rows(self, module: str, step: int) -> Tensor | None:
        return self._checkpoint(step).rows_from(module, self.shapes[module][0])

    @override
    def kernel(self, module: str) -> tuple[int, ...]:
        shapes, base = self._checkpoint(self.steps[0]).shapes(self._holder(module)), self._base_of(module)
        return (() if base is None else base.kernel(self._copies(module))) or kernel_of(shapes)

    def _holder(self, module: str) -> str:
        """The name that the file has for a module."""
        return self._parameters[module].holder if module in self._parameters else module

    @property
    def base_from(self) -> str | None:
        """Where W₀ comes from, or ``None`` where none was given."""
        if self._base is not None:
            return self._base.where
        everything = self._own_base is not None and all(map(self._own_base.has, self.shapes))
        return self._own_base.where if self._own_base is not None and everything else None

    def _base_of(self, module: str) -> Base | None:
        """Where W₀ of a module stands: in the adapter's own file, in the base that was given, or nowhere."""
        original = self._copies(module)
        if self._own_base is not None and self._own_base.has(original):
            return self._own_base
        return None if self._base is None or self._base.find(original) is None else self._base

    def base(self, module: str) -> Tensor:
        """Return W₀ (out, in)."""
        self.check(module)
        base = self._base_of(module) or self._base
        if base is None:
            named = self._settings.get("base_model_name_or_path")
            told = f" (it names {named!r:.200})" if isinstance(named, str) and named else ""
            raise BaseError(
                f"{self.where}: W₀ of {module} is needed and an adapter folder does not hold it{told}; {GIVE}"
            )
        return base.read(self._copies(module), self.shapes[module])

    def _check_unmoved(self, module: str, file: AdapterFile) -> None:
        """Raise where a later checkpoint holds another W₀, as ReLoRA leaves it, which merges as it trains."""
        own = self._own_base
        if own is None or not own.has(module) or file is self._checkpoint(self.steps[0]):
            return
        later = Base(Renamed(file.tensors, file.base), self.config)
        if not later.has(module) or not torch.equal(later.read(module, self.shapes[module]), self.base(module)):
            raise RecordError(
                f"{file.tensors.where}: the base layer of {module} is not as in the first checkpoint: the adapter was "
                "merged as it trained, so ΔW is more than the adapter's; save merged models, and open these"
            )

    def _by(self, formula: Callable[[State, Settings], T], module: str, step: int, dtype: torch.dtype | None) -> T:
        """Return what a formula makes of the adapter's tensors in a dtype; ``None`` leaves each in its own."""
        file = self._checkpoint(step)
        self._check_unmoved(module, file)
        tensors, modules = file.tensors, file.modules

        def wide(value: Tensor) -> Tensor:
            return value.to(dtype) if dtype is not None and value.is_floating_point() else value

        def shared(name: str) -> Tensor:
            end = "" if file.adapter is None else f".{file.adapter}"
            for key in (f"{ROOT}{name}", f"{PREFIX}{name}", f"{ROOT}{name}{end}", f"{PREFIX}{name}{end}"):
                if key in tensors.names():
                    return wide(tensors.read(key))
            raise RecordError(
                f"{tensors.where}: lacks {name}, which layers share (save_projection was false); load the adapter with "
                "PEFT, set save_projection=True, and save it again"
            )

        def start() -> State | None:
            if self.steps[0] != 0 or len(self.steps) == 1:  # a folder alone says nothing of its step
                return None
            return {key: wide(value) for key, value in self.state(module, 0).items()}

        state = {key: wide(value) for key, value in self.state(module, step).items()}

        def bias() -> Tensor | None:
            base = self._base_of(module)
            return None if base is None else base.bias(module)

        name = self._parameters[module].name if module in self._parameters else self._attention.get(module, module)
        settings = Settings(
            tensors.where, name, self._settings,
            self.shapes[module], lambda: self.base(module).to(dtype), shared, start, len(modules),
            [] if self._base is None else [m for m in self._base.order if m in modules],
            self._adapted, bias,
        )  # fmt: skip
        try:
            return formula(state, settings)
        except RecordError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError, KeyError, ZeroDivisionError, OverflowError) as error:
            # Tensors of a damaged or foreign file do not multiply.
            reason = str(error).split("\n", 1)[0][:200]
            raise RecordError(f"{tensors.where}: the tensors of {module} do not go together ({reason})") from None

    def _delta(self, module: str, step: int, dtype: torch.dtype) -> Factors | Tensor:
        found = self._by(self._formula.update, module, step, dtype)
        if self._added_twice(module):
            found = (2 * found[0], found[1]) if isinstance(found, tuple) else 2 * found
        self._check_shape(found, module, step)
        return found

    def _added_twice(self, module: str) -> bool:
        """Whether it is the matrix of an attention's output, whose update PEFT's layer adds twice."""
        return module in self._attention and module.endswith(f".{OUT_PROJ}")

    def _check_shape(self, found: Factors | Tensor, module: str, step: int) -> None:
        where = self._checkpoint(step).tensors.where
        if isinstance(found, tuple) and (found[0].ndim, found[1].ndim, found[0].shape[-1]) != (2, 2, len(found[1])):
            shapes = f"{tuple(found[0].shape)} and {tuple(found[1].shape)}"
            raise RecordError(f"{where}: the tensors of {module} do not go together ({shapes})")
        shape = (len(found[0]), found[1].shape[1]) if isinstance(found, tuple) else tuple(found.shape)
        if shape != self.shapes[module]:
            raise RecordError(f"{where}: the update of {module} is {shape}, its layer {self.shapes[module]}")

    @override
    def scaled_factors(self, module: str, step: int) -> ScaledFactors | None:
        self.check(module, step)
        found = None if module in self._saved else self._by(self._formula.scaled, module, step, None)
        if found is None:
            return super().scaled_factors(module, step)
        self._check_shape((found.U, found.V), module, step)
        return found._replace(scaling=2 * found.scaling) if self._added_twice(module) else found

    @override
    def scaled_low_rank(self, module: str, step: int, base: Tensor) -> ScaledLowRank | None:
        self.check(module, step)
        if module in self._saved or self._dense:
            return None
        found, twice = None, self._added_twice(module)
        if not twice:
            found = self._by(lambda t, s: self._formula.form(t, s, base), module, step, torch.float64)
        if found is None:
            update = self._delta(module, step, torch.float64)
            if not isinstance(update, tuple):
                self._dense = not twice  # nor is it a product elsewhere: it need not be made to see that
                return None
            found = Method.scaled(base, *update)
        self._check_shape((found.U, found.V), module, step)
        return found

    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> Factors | None:
        """Return U and V where the type's update is a product."""
        self.check(module, step)
        if module in self._saved:
            return None
        found = self._delta(module, step, dtype or self._dtype(module, step))
        return found if isinstance(found, tuple) else None

    def update(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return ΔW (out, in), by default in float64."""
        self.check(module, step)
        dtype = dtype or torch.float64
        if module in self._saved:
            return self.state(module, step)["weight"].to(dtype) - self.base(module).to(dtype)
        found = self._delta(module, step, dtype)
        return found[0] @ found[1] if isinstance(found, tuple) else found

    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return W' = W₀ + ΔW (out, in), by default in the wider of the two dtypes."""
        self.check(module, step)
        if module in self._saved:
            weight = self.state(module, step)["weight"]
            return weight if dtype is None else weight.to(dtype)
        base = self.base(module)
        dtype = dtype or torch.promote_types(WIDENED.get(base.dtype, base.dtype), self._dtype(module, step))
        return base.to(dtype) + self.update(module, step, dtype)

    def _dtype(self, module: str, step: int) -> torch.dtype:
        """The dtype in which the adapter is computed: its own, 16 bits widened."""
        file = self._checkpoint(step)
        tensors, modules = file.tensors, file.modules
        names = modules.get(self._holder(module), {}).values()
        found = [d for d in map(tensors.dtype, names) if d.is_floating_point]
        return WIDENED.get(found[0], found[0]) if found else torch.float32

    def label(self, module: str) -> str:
        """Return the type's name, "ft" for a module saved whole."""
        return "ft" if module in self._saved else self.method

    def rebuilt(self, module: str) -> bool:
        """Return whether W' is computed from an adapter."""
        return module not in self._saved

    def rounding(self, module: str, step: int) -> torch.dtype | None:
        """Return the dtype of what multiplies W₀, or of a matrix saved whole."""
        self.check(module, step)
        file = self._checkpoint(step)
        tensors, modules = file.tensors, file.modules
        if module in self._saved:
            return tensors.dtype(self._saved[module])
        if self._formula.scales_base or self._settings.get("use_dora"):
            return next((tensors.dtype(name) for name in modules.get(self._holder(module), {}).values()), None)
        return None

    def places(self, step: int | None) -> list[Place] | None:
        """Return the folder of an adapter; of W₀ also that of the first, whose settings hold for all."""
        base = None if step is not None or self._base is None else self._base.places
        known = step is not None or self._base is None or base is not None
        return [*(base or []), (self._places[self.steps[0] if step is None else step], None)] if known else None

    def described(self, module: str) -> str:
        """Return what else decides: the base's configuration, and how many modules and whether steps there are."""
        return f"{self.config} {len(self.shapes)} {self.steps[0]} {len(self.steps) > 1}"

    def scalars(self) -> list[dict[str, float]]:
        """Return what was logged."""
        return self._log

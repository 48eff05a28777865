"""PEFT's types as methods of a record: their own tensors are recorded, and W' is made of them by the reader's formula.

A layer in a living model holds the tensors that PEFT saves, and the buffers that it draws (the indices of SHiRA, the
projections of VeRA), which a record keeps once. So nothing has to be drawn again, whatever PEFT's version draws.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from typing_extensions import override

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.layer import WIDENED
from deltaw.adapters.method import Layer, Method, ScaledFactors, ScaledLowRank, Shape, State
from deltaw.adapters.methods.registry import create
from deltaw.adapters.modules import is_peft
from deltaw.adapters.peft.formulas.settings import Factors, Settings
from deltaw.adapters.peft.formulas.table import FORMULAS
from deltaw.adapters.peft.names import BASE_LAYER, PREFIX, RECORD

WHOLE = ("LORA",)  # it has methods of its own; of what is left W' itself is recorded
MADE = ("frod_U",)  # follow from W₀ and the others, and are as large as it
RECORDED = tuple(kind for kind in FORMULAS if kind not in WHOLE)
# Settings that no formula needs.
LEFT_OUT = (
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "modules_to_save", "peft_version", "revision", "target_modules", "target_parameters",
    "task_type",
)  # fmt: skip
ALPHA = {"LOHA": "alpha", "LOKR": "alpha", "GRALORA": "alpha", "RANDLORA": "randlora_alpha", "PSOFT": "psoft_alpha"}
PLAIN_SCALE = {"ADALORA": "lora_alpha", "PEANUT": "scaling"}  # settings that a layer's scaling is
BIAS = "bias"
DOT = ":"  # stands for a dot in the name of a tensor, as what follows the last dot is a module's tensor


@dataclass(frozen=True, kw_only=True)
class PeftMethod(Method):
    """A type of PEFT, on one layer.

    Arguments:
        peft_type: The type, as "LOHA".
        module: The layer's name in the plain model: patterns of the settings are matched against it.
        settings: The adapter's configuration.
        trained, frozen: Shapes of the tensors that train, and of those that never change.
        number, layers: Which of the adapted layers it is, in the model's order, and how many there are.

    Raises:
        OptionError: It is no such type, or a shape is none.
    """

    peft_type: str
    module: str
    settings: Mapping[str, Any]
    trained: Mapping[str, Any]
    frozen: Mapping[str, Any]
    number: int = 0
    layers: int = 1

    def __post_init__(self) -> None:
        if self.peft_type not in RECORDED:
            raise OptionError(f"peft_type is {self.peft_type!r:.60}; recorded are {', '.join(RECORDED)}")
        if not isinstance(self.settings, Mapping) or not isinstance(self.module, str):
            raise OptionError("settings and module are no mapping and no name")
        for shapes in (self.trained, self.frozen):
            if not isinstance(shapes, Mapping) or not all(_is_shape(shape) for shape in shapes.values()):
                raise OptionError(f"the shapes of {self.peft_type}'s tensors are none")
        if type(self.number) is not int or type(self.layers) is not int or not 0 <= self.number < self.layers <= 2**20:
            raise OptionError(f"{self.number!r:.40} of {self.layers!r:.40} is no number of a layer")

    @property
    @override
    def name(self) -> str:
        return f"{RECORD}{self.peft_type.lower()}"

    @property
    @override
    def title(self) -> str:
        return self.peft_type

    @property
    @override
    def starts_at_base(self) -> bool:
        return False  # it may: init_weights says so for some types

    @property
    def scales_base(self) -> bool:  # type: ignore[override]
        """Whether its tensors multiply W₀."""
        return FORMULAS[self.peft_type].scales_base

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        return {name: tuple(shape) for name, shape in self.trained.items()}

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        return {name: tuple(shape) for name, shape in self.frozen.items()}

    def _by(self, formula: Any, base: Tensor | None, shape: Shape, state: State) -> Any:
        tensors = {key.replace(DOT, "."): value for key, value in state.items()}

        def shared(name: str) -> Tensor:
            found = tensors.get(name, tensors.get(name.partition(".")[0]))  # FRoD's are of a kind of layers each
            if found is None:
                raise RecordError(f"{self.module}: lacks the tensor {name!r}")
            return found

        def the_base() -> Tensor:
            if base is None:
                raise RecordError(f"{self.module}: its update depends on W₀")
            dtype = next((value.dtype for value in tensors.values() if value.is_floating_point()), base.dtype)
            return base.to(dtype)

        order = [""] * self.number + [self.module] + [""] * (self.layers - self.number - 1)  # only its own place counts
        settings = Settings(
            "the record", self.module, self.settings, (shape[0], shape[1]), the_base, shared, lambda: None, self.layers,
            order, dict.fromkeys([self.module], (shape[0], shape[1])), lambda: tensors.get(BIAS),
        )  # fmt: skip
        try:
            return formula(tensors, settings)
        except RecordError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError, KeyError, ZeroDivisionError, OverflowError) as error:
            reason = str(error).split("\n", 1)[0][:200]
            raise RecordError(f"the tensors of {self.module} do not go together ({reason})") from None

    def _made(self, base: Tensor, state: State) -> Factors | Tensor:
        found: Factors | Tensor = self._by(FORMULAS[self.peft_type].update, base, base.shape, state)
        shape = (len(found[0]), found[1].shape[-1]) if isinstance(found, tuple) else tuple(found.shape)
        if shape != tuple(base.shape):
            raise RecordError(f"the update of {self.module} is {shape}, its layer {tuple(base.shape)}")
        return found

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        return base + self.update(base, state)

    @override
    def update(self, base: Tensor, state: State) -> Tensor:
        found = self._made(base, state)
        return found[0] @ found[1] if isinstance(found, tuple) else found

    @override
    def factors(self, base: Tensor, state: State) -> Factors | None:
        found = self._made(base, state)
        return found if isinstance(found, tuple) else None

    @override
    def scaled_factors(self, shape: Shape, state: State) -> ScaledFactors | None:
        found: ScaledFactors | None = self._by(FORMULAS[self.peft_type].scaled, None, shape, state)
        return found

    @override
    def scaled_low_rank(self, base: Tensor, state: State) -> ScaledLowRank | None:
        form = FORMULAS[self.peft_type].form
        found: ScaledLowRank | None = self._by(lambda t, s: form(t, s, base), base, base.shape, state)
        return super().scaled_low_rank(base, state) if found is None else found

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> NoReturn:
        raise OptionError(f"{self.name} is a method of records; PEFT makes its layers")

    @override
    def forward(self, layer: Layer, x: Tensor) -> NoReturn:
        raise OptionError(f"{self.name} is a method of records; PEFT makes its layers")


def method_of_record(name: str, options: Mapping[str, Any]) -> Method:
    """Return the method of an entry in a manifest: one of ours, or a type of PEFT.

    Raises:
        OptionError: There is no such method, or an option is wrong.
        TypeError: An option is missing.
    """
    return PeftMethod(**options) if name.startswith(RECORD) else create(name, **options)


def peft_method(model: nn.Module, name: str, adapter: str) -> PeftMethod | None:
    """Return the method of a PEFT layer in a living model; ``None`` where W' itself has to be recorded.

    Arguments:
        model: With the configuration on one of the modules above the layer.
        name: The layer's.
        adapter: PEFT's name for the adapter.
    """
    holder, config = _configured(model, name, adapter)
    kind = str(getattr(getattr(config, "peft_type", ""), "value", ""))
    if kind not in RECORDED or config is None or getattr(config, "n_tasks", 1) != 1:
        return None  # of several tasks there is no one W'
    layer = model.get_submodule(name)
    own = name.removeprefix(f"{holder}.") if holder else name
    settings = json.loads(json.dumps(config.to_dict(), default=_plain))
    if not _scaled_as_set(layer, kind, own.removeprefix(PREFIX), settings, adapter):
        return None
    trained, frozen = (_tensors(layer, FORMULAS[kind].prefix, adapter, train=train) for train in (True, False))
    if not trained:
        return None
    kept = {key: value for key, value in settings.items() if value is not None and key not in LEFT_OUT}
    adapted = [own]
    if kind == "TINYLORA":  # the only one that asks for a layer's number, as its vectors may be shared
        adapted = [each for each, module in model.get_submodule(holder).named_modules() if is_peft(module)]
    return PeftMethod(
        peft_type=kind,
        module=own.removeprefix(PREFIX),
        settings=kept,
        trained={key: list(value.shape) for key, value in trained.items()},
        frozen={key: list(value.shape) for key, value in frozen.items()},
        number=adapted.index(own),
        layers=len(adapted),
    )


def peft_state(layer: nn.Module, method: PeftMethod, adapter: str, *, frozen: bool) -> dict[str, Tensor]:
    """Return a layer's tensors that train, or those that never change, 16 bits widened; not copies.

    Raises:
        RecordError: They, or their scaling, are others than the record began with.
    """
    if not _scaled_as_set(layer, method.peft_type, method.module, method.settings, adapter):
        raise RecordError(f"the scaling of PEFT's adapter {adapter!r} was changed; start another record")
    found = _tensors(layer, FORMULAS[method.peft_type].prefix, adapter, train=not frozen)
    wanted = method.frozen if frozen else method.trained
    if {key: list(value.shape) for key, value in found.items()} != dict(wanted):
        raise RecordError(
            f"the tensors of PEFT's adapter {adapter!r} on {method.module} were changed; start another record"
        )
    return {key: value.to(WIDENED.get(value.dtype, value.dtype)) for key, value in found.items()}


def _tensors(layer: nn.Module, prefix: str, adapter: str, *, train: bool) -> dict[str, Tensor]:
    """The adapter's tensors in a layer by PEFT's name of each: parameters, or buffers and what is drawn once."""
    named: list[tuple[str, Any]] = list(layer.named_parameters() if train else layer.named_buffers())
    if not train:  # SHiRA keeps its indices in a plain mapping
        named += [
            (f"{name}.{adapter}", value[adapter]) for name, value in vars(layer).items() if _holds(value, adapter)
        ]
    found = {}
    bias = getattr(layer.get_submodule(BASE_LAYER), "bias", None)
    if prefix == "adamss_" and not train and isinstance(bias, Tensor):
        found[BIAS] = bias.detach()  # its clusters are those of the rows of [W₀ b]
    for name, value in named:
        parts = name.split(".")
        if parts[0].startswith(prefix) and parts[0] not in MADE and adapter in parts[1:]:
            parts.remove(adapter)
            found[DOT.join(parts).removesuffix(f"{DOT}weight")] = value.detach()
    return found


def _scaled_as_set(layer: nn.Module, kind: str, module: str, settings: Mapping[str, Any], adapter: str) -> bool:
    """Whether a layer's scaling is that of the settings, by which W' is made again; it can be set by hand."""
    found = vars(layer).get("scaling")
    if not isinstance(found, dict) or adapter not in found:
        return True
    if kind in ALPHA:
        s = Settings("the record", module, settings, (1, 1), lambda: torch.empty(0), lambda _: torch.empty(0))
        rank: Any = getattr(layer, "r", {})
        return bool(found[adapter] * rank[adapter] == s.number(ALPHA[kind], 8, "alpha_pattern"))
    return bool(found[adapter] == settings.get(PLAIN_SCALE.get(kind, ""), 1.0))


def _holds(value: object, adapter: str) -> bool:
    """Whether it is a mapping, or PEFT's own of buffers, with a tensor of the adapter."""
    if not isinstance(value, dict) and type(value).__name__ != "BufferDict":
        return False
    mapping: Any = value
    return adapter in mapping and isinstance(mapping[adapter], Tensor)


def _configured(model: nn.Module, name: str, adapter: str) -> tuple[str, Any]:
    """The module above a layer that has the adapter's configuration, the nearest, and the configuration."""
    parts = name.split(".")
    for k in range(len(parts) - 1, -1, -1):
        holder = ".".join(parts[:k])
        configs = getattr(model.get_submodule(holder), "peft_config", None)
        if isinstance(configs, dict) and adapter in configs:
            return holder, configs[adapter]
    return "", None


def _plain(value: object) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(getattr(value, "value", value))


def _is_shape(shape: object) -> bool:
    return (
        isinstance(shape, (list, tuple)) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    )

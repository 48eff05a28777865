"""What W' is: one file per method, and injecting, merging and reading the effective weight."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from deltaw.adapters.bora import BoRA
from deltaw.adapters.dora import DoRA
from deltaw.adapters.dual_lora import DualLoRA
from deltaw.adapters.effective import base_weight, effective_weight
from deltaw.adapters.errors import (
    DataError,
    DeltawError,
    NonFiniteError,
    OptionError,
    RecordError,
    ShapeError,
    TargetError,
    WriteError,
)
from deltaw.adapters.full import FullFineTuning
from deltaw.adapters.inject import adapted, inject, load_adapters, merge, save_adapters
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.lora import LoRA
from deltaw.adapters.method import Method
from deltaw.adapters.sbora import SBoRA

METHODS: dict[str, Callable[..., Method]] = {
    "ft": FullFineTuning,
    "lora": LoRA,
    "rslora": partial(LoRA, rank_stabilized=True),
    "dora": DoRA,
    "dora-row": partial(DoRA, axis="row"),
    "bora": BoRA,
    "sbora-fa": SBoRA,
    "sbora-fb": partial(SBoRA, variant="FB"),
    "dual-lora": DualLoRA,
}


def create(name: str, **options: Any) -> Method:
    """Make a method from its name and plain options, as the command line and a record give them.

    Raises:
        OptionError: There is no such method, or it has no such option; the message lists what there is.

    Example:
        >>> from deltaw.adapters import create
        >>> create("dora-row", rank=4).name
        'dora-row'
    """
    if name not in METHODS:
        raise OptionError(f"there is no method {name!r}; choose one of {', '.join(METHODS)}")
    known = inspect.signature(METHODS[name]).parameters
    for option in options:
        if option not in known:
            raise OptionError(f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return METHODS[name](**options)


__all__ = [
    "METHODS",
    "AdaptedLayer",
    "BoRA",
    "DataError",
    "DeltawError",
    "DoRA",
    "DualLoRA",
    "FullFineTuning",
    "LoRA",
    "Method",
    "NonFiniteError",
    "OptionError",
    "RecordError",
    "SBoRA",
    "ShapeError",
    "TargetError",
    "WriteError",
    "adapted",
    "base_weight",
    "create",
    "effective_weight",
    "inject",
    "load_adapters",
    "merge",
    "save_adapters",
]

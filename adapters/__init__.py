"""What W' is: one file per method, and injecting, merging and reading the effective weight."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

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
from deltaw.adapters.injection import adapted, inject, load_adapters, merge, save_adapters
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.method import Method
from deltaw.adapters.methods.asylora import AsyLoRA
from deltaw.adapters.methods.bora import BoRA
from deltaw.adapters.methods.corda import CorDA, input_covariances
from deltaw.adapters.methods.delta_lora import DeltaLoRA
from deltaw.adapters.methods.dora import DoRA
from deltaw.adapters.methods.dual_lora import DualLoRA
from deltaw.adapters.methods.full import FullFineTuning
from deltaw.adapters.methods.galore import GaLore, galore_optimizer
from deltaw.adapters.methods.hira import HiRA
from deltaw.adapters.methods.lora import LoRA
from deltaw.adapters.methods.lora_fa import LoRAFA
from deltaw.adapters.methods.lora_plus import LoRAPlus, parameter_groups
from deltaw.adapters.methods.magnitude import Magnitude
from deltaw.adapters.methods.mora import MoRA
from deltaw.adapters.methods.oa import OrthogonalAdaptation
from deltaw.adapters.methods.pissa import PiSSA
from deltaw.adapters.methods.randlora import RandLoRA
from deltaw.adapters.methods.sbora import SBoRA
from deltaw.adapters.methods.vera import DVoRA, VeRA
from deltaw.adapters.peft.format import load_peft, save_peft
from deltaw.adapters.quantization import quantize

METHODS: dict[str, Callable[..., Method]] = {
    "ft": FullFineTuning,
    "galore": GaLore,
    "lora": LoRA,
    "lora+": LoRAPlus,
    "rslora": partial(LoRA, rank_stabilized=True),
    "lora-fa": LoRAFA,
    "asylora": AsyLoRA,
    "oa": OrthogonalAdaptation,
    "pissa": PiSSA,
    "corda": CorDA,
    "delta-lora": DeltaLoRA,
    "vera": VeRA,
    "dora": DoRA,
    "dora-row": partial(DoRA, axis="row"),
    "magnitude": Magnitude,
    "dvora": DVoRA,
    "bora": BoRA,
    "sbora-fa": SBoRA,
    "sbora-fb": partial(SBoRA, variant="FB"),
    "mora": MoRA,
    "hira": HiRA,
    "randlora": RandLoRA,
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
    "AsyLoRA",
    "BoRA",
    "CorDA",
    "DVoRA",
    "DataError",
    "DeltaLoRA",
    "DeltawError",
    "DoRA",
    "DualLoRA",
    "FullFineTuning",
    "GaLore",
    "HiRA",
    "LoRA",
    "LoRAFA",
    "LoRAPlus",
    "Magnitude",
    "Method",
    "MoRA",
    "NonFiniteError",
    "OptionError",
    "OrthogonalAdaptation",
    "PiSSA",
    "RandLoRA",
    "RecordError",
    "SBoRA",
    "ShapeError",
    "TargetError",
    "VeRA",
    "WriteError",
    "adapted",
    "base_weight",
    "create",
    "effective_weight",
    "galore_optimizer",
    "inject",
    "input_covariances",
    "load_adapters",
    "load_peft",
    "merge",
    "parameter_groups",
    "quantize",
    "save_adapters",
    "save_peft",
]

"""The ``adapter_config.json`` of PEFT: whether such an adapter is read, and which method it is."""

import logging
from collections.abc import Mapping
from typing import Any

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.formulas.table import FORMULAS, REFUSED
from deltaw.adapters.peft.names import CONFIG
from deltaw.analysis.records.storage.files import Storage

ZERO_ALPHA = (
    "lora_alpha is 0, so ΔW = 0 whatever the factors are; some trainers write 0 for a value that they do not know"
)
NAMED = 8  # modules that a message names
logger = logging.getLogger(__name__)
# Options of LoRA with which no one W' belongs to a layer.
NOT_READ = {
    "alora_invocation_tokens": "the adapter acts on some tokens only, so there is no one W'; for that of those tokens "
    "take the option out of a copy of adapter_config.json",
    "arrow_config": "its weight depends on the input, so there is no W'; open the adapters that it mixes",
}


def read_settings(place: Storage) -> dict[str, Any]:
    """Return an ``adapter_config.json`` of a type that can be read.

    Raises:
        RecordError: It is damaged, or its type or an option cannot be read; says why and what to do.
    """
    settings = place.mapping(CONFIG)
    kind = settings.get("peft_type")
    if isinstance(kind, str) and kind in REFUSED:
        raise RecordError(f"{place.where}: {kind} adapters are not read: {REFUSED[kind]}")
    if not isinstance(kind, str) or kind not in FORMULAS:
        raise RecordError(f"{place.where}: peft_type is {kind!r:.60}; read are {', '.join(FORMULAS)}")
    if kind == "LORA":
        for option, reason in NOT_READ.items():
            if settings.get(option):
                raise RecordError(f"{place.where}: {option} is set: {reason}")
    if kind == "POLY" and settings.get("n_tasks", 1) != 1:
        raise RecordError(
            f"{place.where}: n_tasks is {settings['n_tasks']!r:.40}: its weight depends on the task, so there "
            "is no one W'; one task is read"
        )
    return settings


def method_name(kind: str, settings: Mapping[str, Any]) -> str:
    """The name for tables, ours where we have the method."""
    if kind != "LORA":
        return kind.lower()
    start = settings.get("init_lora_weights")
    if settings.get("use_dora"):
        return "dora-row"
    if isinstance(start, str) and start.split("_niter_")[0] in ("pissa", "olora", "corda", "loftq", "lora_ga", "eva"):
        return start.split("_niter_")[0]
    if settings.get("kasa_config"):
        return "kasa"
    return "rslora" if settings.get("use_rslora") else "lora"


def noted(settings: Mapping[str, Any], where: str) -> dict[str, list[str]]:
    """Return what a reader of numbers should know of settings, under "notes", and log it."""
    others = settings.get("alpha_pattern") or settings.get("use_dora")
    if settings["peft_type"] != "LORA" or settings.get("lora_alpha") != 0 or others:
        return {}
    logger.warning("%s: %s", where, ZERO_ALPHA)
    return {"notes": [ZERO_ALPHA]}


def by_reason(left_out: Mapping[str, str]) -> str:
    """Return what is left out, by reason, for a message.

    Example:
        >>> by_reason({"conv": "it is a convolution", "proj": "it is a convolution"})
        'conv, proj: it is a convolution'
    """
    reasons: dict[str, list[str]] = {}
    for module, reason in left_out.items():
        reasons.setdefault(reason, []).append(module)
    return "; ".join(
        f"{', '.join(modules[:NAMED])}{', …' if len(modules) > NAMED else ''}: {reason}"
        for reason, modules in reasons.items()
    )

"""Trainable parameters of a method on a model, counted from its configuration, without loading any weight."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltaw.adapters.errors import DataError
from deltaw.adapters.inject import linear_modules, linear_shape, matching
from deltaw.adapters.method import Method


def count_trainable(model: nn.Module, method: Method, targets: Sequence[str]) -> dict[str, Any]:
    """Count what ``inject(model, method, targets)`` would train, changing nothing.

    Arguments:
        model: May be on the meta device.
        method: The method; for full fine-tuning every parameter counts.
        targets: Glob patterns over module names.

    Returns:
        method, modules (how many are adapted), trainable, total (of the base model), share = trainable / total.

    Raises:
        TargetError: A pattern matches no linear layer.
        OptionError: The rank does not fit a matrix.

    Example:
        >>> from deltaw.adapters import BoRA
        >>> count_trainable(nn.Sequential(nn.Linear(6, 4)), BoRA(rank=2), ["0"])["trainable"]
        30
    """
    layers = dict(linear_modules(model))
    chosen = matching(layers, targets, "target")
    total = sum(p.numel() for p in model.parameters())
    trainable = 0
    for name in chosen:
        shape = linear_shape(layers[name])
        method.check_shape(*shape, name)
        trainable += method.count(*shape)
    if not method.injects:
        trainable = total
    return {
        "method": method.name,
        "modules": len(chosen),
        "trainable": trainable,
        "total": total,
        "share": trainable / total,
    }


def model_from_config(source: str) -> nn.Module:
    """Build a Hugging Face model on the meta device from a config: a name, a folder, or a config.json.

    Raises:
        DataError: No config can be read there, or transformers is missing.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise DataError("configs of models need transformers: pip install 'deltaw[train]'") from None
    path = Path(source)
    try:
        config = AutoConfig.from_pretrained(str(path.parent) if path.name == "config.json" else source)
        with torch.device("meta"):
            model: nn.Module = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{source}: no model config can be read there ({reason})") from None
    return model

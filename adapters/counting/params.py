"""Trainable parameters of a method on a model, counted from its configuration, without loading any weight."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltaw.adapters.counting.configs import CONFIGS, complete, named_config
from deltaw.adapters.errors import DataError, OptionError
from deltaw.adapters.injection import methods_by_module
from deltaw.adapters.method import Method
from deltaw.adapters.modules import linear_modules, linear_shape
from deltaw.adapters.patterns import matching, owners


def count_trainable(
    model: nn.Module,
    method: Method | Mapping[str, Method],
    targets: Sequence[str] = (),
    *,
    trainable: Sequence[str] = (),
) -> dict[str, Any]:
    """Count what ``inject(model, method, targets, trainable=trainable)`` would train, changing nothing.

    Arguments:
        model: May be on the meta device.
        method: The method, or patterns with their methods, of which the last that fits counts; for full fine-tuning
            every parameter counts.
        targets: Glob patterns over module names; none with a mapping.
        trainable: Glob patterns over modules or parameters that stay trainable beside the method.

    Returns:
        method, modules (how many are adapted), trainable, total (of the base model), share = trainable / total, and
        share_of_all = trainable / (total + what the method adds), which is what PEFT prints and the papers' tables
        give.

    Raises:
        TargetError: A pattern matches no linear layer.
        OptionError: The rank does not fit a matrix; targets beside a mapping; full fine-tuning with another method.

    Example:
        >>> from deltaw.adapters import BoRA
        >>> count_trainable(nn.Sequential(nn.Linear(6, 4)), BoRA(rank=2), ["0"])["trainable"]
        30
    """
    layers = dict(linear_modules(model))
    chosen = methods_by_module(layers, method, targets, lambda _: True)
    methods = set(chosen.values())
    full = any(not wanted.injects for wanted in methods)
    if full and len(methods) > 1:
        raise OptionError("full fine-tuning goes with no other method; pass it alone")
    total = sum(p.numel() for p in model.parameters())
    added = 0
    for name, wanted in chosen.items():
        shape = linear_shape(layers[name])
        wanted.check_shape(*shape, name)
        added += 0 if full else wanted.count(*shape)
    count = total if full else added + _beside(model, trainable)
    return {
        "method": " and ".join(dict.fromkeys(wanted.name for wanted in chosen.values())),
        "modules": len(chosen),
        "trainable": count,
        "total": total,
        "share": count / total,
        "share_of_all": count / (total + added),
    }


def _beside(model: nn.Module, patterns: Sequence[str]) -> int:
    """Number of the base model's own parameters that the patterns keep trainable."""
    own = dict(model.named_parameters())
    kept = set(matching({**dict(model.named_modules()), **own}, patterns, "trainable"))
    return sum(parameter.numel() for name, parameter in own.items() if owners(name) & kept)


def model_from_config(source: str) -> nn.Module:
    """Build a Hugging Face model on the meta device: a name in ``CONFIGS``, a name on the hub, a folder, a config.json.

    A name in ``CONFIGS`` comes first and needs no network; write ``./roberta-base`` for a folder of that name.
    The class is the one whose size the papers quote: with the output layer where the configuration says that it is a
    causal language model (LLaMA 7B: 6,738,415,616), else the bare model (RoBERTa base: 124,645,632).

    Raises:
        DataError: No config can be read there, or transformers is missing.
    """
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    except ImportError:
        raise DataError("configs of models need transformers: pip install 'deltaw[train]'") from None
    path = Path(source)
    try:
        if source in CONFIGS:
            config = named_config(source)
        else:
            config = AutoConfig.from_pretrained(str(path.parent) if path.name == "config.json" else source)
        causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or ())
        made_by = AutoModelForCausalLM if causal else AutoModel
        with torch.device("meta"):
            model: nn.Module = made_by.from_config(config)  # type: ignore[no-untyped-call]
            complete(source, model)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{source}: no model config can be read there ({reason}); known without one: {', '.join(CONFIGS)}"
        ) from None
    return model

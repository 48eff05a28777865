"""The two files of an adapter's folder, read and checked for ``load_peft``."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltaw.adapters.errors import DataError, NonFiniteError, OptionError
from deltaw.adapters.peft.names import (
    CONFIG,
    LEAVES_THE_BASE,
    MADE_AGAIN,
    MODULES_TO_SAVE,
    PICKLE,
    TENSORS,
    UNDERSTOOD,
    WEIGHTS,
)
from deltaw.adapters.small_files import bounded_json, regular_file, small_file

UNLOAD = "load it with PEFT, call merge_and_unload(), and start from that plain model"
LARGEST_CONFIG = 2**24  # bytes
KINDS = {"rank_pattern": dict, "alpha_pattern": dict, MODULES_TO_SAVE: list}


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings of an adapter whose type is one of ours, checked.

    Raises:
        DataError: It cannot be read, or a setting is of another kind than PEFT's.
        OptionError: A setting has no counterpart here.
    """
    path = folder / CONFIG
    try:
        config = bounded_json(small_file(path, LARGEST_CONFIG))
    except OSError as error:
        why = error.strerror or "no regular file"
        raise DataError(f"{folder}: is no PEFT adapter folder, {CONFIG} cannot be read ({why})") from None
    except ValueError as error:
        raise DataError(f"{path}: is no JSON of settings ({error})") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: holds no settings")
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in TENSORS:
        raise OptionError(f"{folder}: peft_type is {kind!r:.60}; {', '.join(TENSORS)} can be read; else {UNLOAD}")
    for key, value in config.items():
        if (value and key not in UNDERSTOOD) or (key == "bias" and value not in ("none", None)):
            raise OptionError(f"{folder}: {repr(key)[1:-1]:.60} = {value!r:.60} has no counterpart here; {UNLOAD}")
    for key, of in KINDS.items():
        if config.get(key) is not None and not isinstance(config[key], of):
            raise DataError(f"{path}: {key} = {config[key]!r:.60} is none of PEFT's settings")
    if not all(isinstance(name, str) and name for name in config.get(MODULES_TO_SAVE) or []):
        raise DataError(f"{path}: {MODULES_TO_SAVE} = {config[MODULES_TO_SAVE]!r:.60} is no list of names")
    start = config.setdefault("init_lora_weights", True)
    if start not in (*LEAVES_THE_BASE, *MADE_AGAIN):
        raise OptionError(
            f"{folder}: init_lora_weights = {start!r:.60} changed the base, and its start cannot be made again here; "
            "save it with PEFT's save_pretrained(folder, path_initial_model_for_weight_conversion=…): plain LoRA"
        )
    if config.get("use_dora") and start not in LEAVES_THE_BASE:
        raise OptionError(f"{folder}: use_dora with init_lora_weights = {start!r} has no counterpart here; {UNLOAD}")
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of an adapter's file.

    Raises:
        DataError: There is none, it is damaged, or a pickle.
        NonFiniteError: One holds NaN or infinity.
    """
    path = folder / WEIGHTS
    if not path.exists() and (folder / PICKLE).exists():
        raise DataError(
            f"{folder}: {PICKLE} is a pickle, which can run any code when it is read; if you trust it, load it with "
            f"PEFT and write {WEIGHTS} with model.save_pretrained(folder)"
        )
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is no regular file")
    try:
        with regular_file(path), safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a safetensors file ({error})") from None
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise NonFiniteError(
                f"{path}: {key!r:.200} holds NaN or infinity; the file is damaged, or its training failed"
            )
    return tensors

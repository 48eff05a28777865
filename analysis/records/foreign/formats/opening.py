"""Which format an adapter's file is of, what stands beside it, and how its steps are opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.names import CONFIG, WEIGHTS
from deltaw.analysis.records.foreign.base import BaseLike, base_named, open_base
from deltaw.analysis.records.foreign.foreign_adapters import BY_SETTINGS, Tool, foreign_tool, settings_tool
from deltaw.analysis.records.foreign.formats import diffusers, fused, kohya, mlx, naming, peft_like
from deltaw.analysis.records.foreign.formats.source import AdapterFormat, ForeignAdapters
from deltaw.analysis.records.foreign.model_reader import place_of, read_file
from deltaw.analysis.records.source import Source
from deltaw.analysis.records.storage.file_names import adapter_file, steps_of_files
from deltaw.analysis.records.storage.files import LocalStorage, Storage
from deltaw.analysis.records.storage.location import Folder, Location
from deltaw.analysis.records.storage.tensors import Tensors

# By the name that a tool has in ``foreign_adapters.TOOLS``.
READERS: dict[str, tuple[Callable[[Tensors, Mapping[str, Any]], Any], Callable[[str, naming.Names], str]]] = {
    "kohya": (kohya.read, naming.dotted),
    "lycoris": (kohya.read, naming.dotted),
    "comfyui": (kohya.read, naming.dotted),
    "diffusers": (diffusers.read, naming.dotted),
    "mlx": (mlx.read, lambda name, _: name),
    "torchtune": (peft_like.read_torchtune, lambda name, _: name),
    "peft-state": (peft_like.read, lambda name, _: name),
    "nvlabs-dora": (peft_like.read, lambda name, _: name),
    "litgpt": (fused.read_litgpt, lambda name, _: name),
    "loralib": (fused.read_loralib, lambda name, _: name),
    "adapterhub": (fused.read_adapterhub, lambda name, _: name),
}
# LitGPT's
LITGPT_FILE, HYPERPARAMETERS, MODEL_CONFIG = "lit_model.pth.lora", "hyperparameters.yaml", "model_config.yaml"
YAML_LIMIT = 2**20  # bytes
_LINE = re.compile(r"([A-Za-z_]\w{0,60}):[ \t]+(\S{1,80})[ \t]*(?:#.*)?")
_MLX_STEP = re.compile(r"(\d{1,18})_adapters\.safetensors")
_TUNE_STEP = re.compile(r"adapter_(\d{1,18})\.(?:pt|bin|safetensors)")
TUNE_MODEL = "adapter_model.pt"
NPZ = (
    "adapters.npz is MLX's older format; write mlx.core.save_safetensors('adapters.safetensors', "
    "dict(mlx.core.load('adapters.npz'))) in Python, and open the folder again"
)


def adapter_source(
    where: str,
    models: Mapping[int, Callable[[], Tensors]],
    first: Tensors,
    folders: Mapping[int, Storage],
    base: BaseLike,
    *,
    root: Storage | None = None,
    log: list[dict[str, float]] | None = None,
    steps_known: bool = True,
) -> Source | None:
    """Return the source of an adapter's files, ``None`` where the first holds no adapter that is read here.

    Arguments:
        where: For messages.
        models: What opens the file of a step, by step.
        first: The tensors of the first step.
        folders: The folder of the file of a step, whose settings count.
        base: W₀.
        root: A folder whose settings count where that of a step has none.
        log: What was logged.
        steps_known: Whether the files say the steps.

    Raises:
        RecordError: It is such an adapter, and damaged.
    """
    found = foreign_tool(first.names())
    if found is None or not found[0].reads:
        return None
    tool, settings = found[0], {step: beside(storage, root) for step, storage in folders.items()}
    told = settings_tool(settings[min(models)]) if min(models) in settings else None
    place = place_of(models[min(models)])
    if place is not None and place[1] == LITGPT_FILE:
        told = BY_SETTINGS["litgpt"]
    if told is not None and told.reads:
        tool = told
    return _opened(tool, where, models, first, settings, base, log, steps_known)


def _opened(
    tool: Tool,
    where: str,
    models: Mapping[int, Callable[[], Tensors]],
    first: Tensors,
    settings: Mapping[int, Mapping[str, Any]],
    base: BaseLike,
    log: list[dict[str, float]] | None = None,
    steps_known: bool = True,
) -> Source:
    read, shown = READERS[tool.reads]
    form = AdapterFormat(tool.reads, tool.name, tool.advice, read, shown)
    given = open_base(base if base is not None else _named(settings[min(models)]))
    return ForeignAdapters(where, form, models, first, settings, given, log=log, steps_known=steps_known)


def _named(settings: Mapping[str, Any]) -> Path | None:
    """The model in Hugging Face's cache that settings name as the one that was trained."""
    name = settings.get("base_model_name_or_path") or settings.get("model")
    return base_named({**settings, "base_model_name_or_path": name})


def beside(storage: Storage, root: Storage | None = None) -> dict[str, Any]:
    """Return the settings that stand in a folder: ``adapter_config.json``, or LitGPT's two files."""
    for place in (storage,) if root is None else (storage, root):
        found = place.mapping(CONFIG) or {**flat_yaml(place, MODEL_CONFIG), **flat_yaml(place, HYPERPARAMETERS)}
        if found:
            return found
    return {}


def flat_yaml(storage: Storage, name: str) -> dict[str, Any]:
    """Return the plain values at the top of a YAML file: numbers, true and false, words; nothing of what is nested."""
    if not storage.has(name) or storage.size(name) > YAML_LIMIT:
        return {}
    found: dict[str, Any] = {}
    for line in bytes(storage.read(name, 0, storage.size(name))).decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match:
            key, text = match.groups()
            found[key] = _plain(text)
    return found


def _plain(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if text in ("null", "~"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def recognises(location: Location) -> bool:
    """Return whether an adapter of another tool than PEFT stands there with an ``adapter_config.json``, or as steps."""
    return _form(location) is not None


def _form(location: Location) -> str | None:
    """The format of a folder that its names, or its configuration, tell."""
    if location.file is not None:
        return None
    for folder in location.checkpoints.values() or (location,):
        if CONFIG not in folder.names:
            continue
        if any(map(_TUNE_STEP.fullmatch, folder.names)) or (TUNE_MODEL in folder.names and WEIGHTS not in folder.names):
            return "torchtune"
        # Behind an address a configuration costs a question, and PEFT's own weights say enough.
        if isinstance(folder.storage, LocalStorage) or WEIGHTS not in folder.names:
            tool = settings_tool(folder.storage.mapping(CONFIG))
            return None if tool is None else tool.reads or None
        return None
    return None


def opens(location: Location, base: BaseLike, everything: bool) -> Source:
    """Open a folder with an ``adapter_config.json`` of another tool, or such folders of steps.

    Raises:
        RecordError: It has no adapter, or a damaged one.
    """
    del everything  # an adapter shows what it adapts
    storage, form = location.storage, _form(location)
    if location.checkpoints:
        parts = {step: _file(folder, str(form)) for step, folder in location.checkpoints.items()}
        models = {
            step: partial(read_file, folder.storage, parts[step]) for step, folder in location.checkpoints.items()
        }
        folders = {step: folder.storage for step, folder in location.checkpoints.items()}
        return _of(str(form), storage.where, models, folders, base, storage, True)
    steps = _steps(location.names)
    if not steps:
        name = _file(location, str(form))
        return _of(str(form), storage.where, {0: partial(read_file, storage, name)}, {0: storage}, base, None, False)
    readers = {step: partial(read_file, storage, name) for step, name in steps.items()}
    return _of(str(form), storage.where, readers, dict.fromkeys(steps, storage), base, None, True)


def _of(
    form: str,
    where: str,
    models: Mapping[int, Callable[[], Tensors]],
    folders: Mapping[int, Storage],
    base: BaseLike,
    root: Storage | None,
    known: bool,
) -> Source:
    first = models[min(models)]()
    settings = {step: beside(storage, root) for step, storage in folders.items()}
    found = foreign_tool(first.names())
    titled = settings_tool(settings[min(models)])
    tool = titled or (found[0] if found else Tool("torchtune's LoRA", re.compile(""), reads="torchtune"))
    return _opened(tool._replace(reads=form), where, models, first, settings, base, None, known)


def _steps(names: Sequence[str]) -> dict[int, str]:
    """The files of a folder that are steps by their names: MLX's, torchtune's; not those without a step."""
    for pattern in (_MLX_STEP, _TUNE_STEP):
        files = [name for name in names if pattern.fullmatch(name)]
        if files:
            return steps_of_files(files)
    return {}


def _file(folder: Folder, form: str) -> str:
    names = folder.names
    usual = {"torchtune": TUNE_MODEL}.get(form) or adapter_file(names)
    for name in (usual, WEIGHTS, "adapter_model.bin", "model.safetensors", "pytorch_model.bin"):
        if name in names:
            return str(name)
    tool, there = settings_tool(folder.storage.mapping(CONFIG)), ", ".join(names[:8])
    held = "an adapter" if tool is None else tool.name
    advice = NPZ if "adapters.npz" in names else "copy it there"
    raise RecordError(
        f"{folder.storage.where}: holds {held} by its {CONFIG}, but no file of it (there are {there}); {advice}"
    )

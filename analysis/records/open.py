"""Recognise what a path holds, and open it."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.injection import matching
from deltaw.analysis.records.base import Base, BaseLike, open_base
from deltaw.analysis.records.dcp import DCP_METADATA, read_dcp
from deltaw.analysis.records.format import INDEX, MANIFEST
from deltaw.analysis.records.full import Models, step_in, trainer_log
from deltaw.analysis.records.layout import Split
from deltaw.analysis.records.peft import ADAPTER_CONFIG, Adapters
from deltaw.analysis.records.recorded import Recorded
from deltaw.analysis.records.source import Source
from deltaw.analysis.records.storage import (
    FILES,
    LocalPlace,
    NotListedError,
    Place,
    RemotePlace,
    is_address,
    place_of,
    without_secrets,
)
from deltaw.analysis.records.tensors import Tensors, read_pickled, read_weights, weights_file

CHECKPOINT = re.compile(r"(?:checkpoint|ckpt|step|iter|global_step|epoch)[-_=]?(\d{1,18})")
SHARD = re.compile(r".*-\d{5}-of-\d{5}\.\w+")
FSDP = "pytorch_model_fsdp_0"  # where transformers and accelerate put the shards of FSDP
TRIED = (
    MANIFEST,
    ADAPTER_CONFIG,
    "model.safetensors",
    "model.safetensors.index.json",
    DCP_METADATA,
)  # where nothing is listed
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
READABLE = (
    "a run of deltaw, checkpoint-*/ folders of Hugging Face or PEFT, a model or adapter folder, a folder of "
    "torch.distributed.checkpoint, or safetensors files whose names hold a step"
)


def open_source(
    path: str | Path, *, base: BaseLike = None, modules: Sequence[str] | None = None, split: bool | None = None
) -> Source:
    """Open a run, whoever wrote it.

    Arguments:
        path: A folder or a file, or the address of one that fsspec knows.
        base: W₀, where the run does not hold it.
        modules: Glob patterns over its modules, of which embeddings are shown only so; ``None`` for linear layers.
        split: Show query, key and value of a fused matrix apart; by default in all but deltaw's own runs.

    Raises:
        RecordError: Nothing readable is there, or it is damaged.
        OptionError: ``base`` is given for a run that records it itself.
        TargetError: A pattern of ``modules`` matches nothing.
    """
    if not (isinstance(path, str) and is_address(path)) and is_own(path):
        return _own(LocalPlace(Path(path)), base, modules, split)
    place, file = place_of(path)
    everything = modules is not None
    if file is not None:
        return _shown(_one_file(place, file, open_base(base), everything), modules, split)
    names = _names(place)
    if isinstance(place, RemotePlace) and _has_own(names):
        return _own(place, base, modules, split)
    steps = {int(found.group(1)): name for name in names if (found := CHECKPOINT.fullmatch(name))}
    if len(steps) < sum(CHECKPOINT.fullmatch(name) is not None for name in names):
        raise RecordError(f"{place.where}: two of its folders are of the same step; move one away")
    steps = {step: name for step, name in sorted(steps.items()) if place.has_folder(name)}
    if steps:
        source = _checkpoints(place, names, steps, base, everything)
    elif ADAPTER_CONFIG in names:
        step, log = trainer_log(place)
        source = Adapters(place.where, {step or 0: place}, base, log)
    else:
        source = _models(place, names, base, everything)
    return _shown(source, modules, split)


def is_own(path: str | Path) -> bool:
    """Return whether it is the folder, or its address, of a run that deltaw recorded."""
    if isinstance(path, str) and is_address(path):
        place, file = place_of(path)
        return file is None and _has_own(_names(place))
    return any((Path(path) / name).is_file() for name in (MANIFEST, INDEX))


def open_pair(
    before: str | Path,
    after: str | Path,
    *,
    modules: Sequence[str] | None = None,
    split: bool | None = None,
) -> Source:
    """Open two models as one run: the first is W₀ and step 0, the second step 1.

    Arguments:
        before, after: Each a file or a folder of one model, or its address.
        modules, split: See ``open_source``.

    Raises:
        RecordError: One of them is no model, or they are not of one model.
    """
    base = open_base(before if not Path(before).is_file() else Path(before))
    readers = {0: _model_reader(before), 1: _model_reader(after)}
    config = base.config if base is not None else {}
    before, after = (without_secrets(str(path)) for path in (before, after))
    source = Models(f"{before} → {after}", "pair", readers, config, base, everything=modules is not None)
    for module, shape in source.shapes.items():
        found = source.shape_at(module, 1)
        if found != shape:
            raise RecordError(f"{after}: {module} is {found}, in {before} it is {shape}; they are not of one model")
    return _shown(source, modules, split)


def _has_own(names: Sequence[str]) -> bool:
    return MANIFEST in names or INDEX in names


def _own(place: Place, base: BaseLike, modules: Sequence[str] | None, split: bool | None) -> Source:
    if base is not None:
        raise OptionError(f"{place.where}: records its base weights itself; leave base out")
    source: Source = Recorded(place)
    return _shown(source, modules, bool(split))


def _shown(source: Source, modules: Sequence[str] | None, split: bool | None) -> Source:
    if split is None or split:
        source = Split(source)
    if modules is not None:
        kept = matching(source.shapes, [modules] if isinstance(modules, str) else modules, "module")
        source.shapes = {name: source.shapes[name] for name in kept}
    return source


def _one_file(place: Place, file: str, base: Base | None, everything: bool) -> Source:
    if not file.endswith(WEIGHTS):
        raise RecordError(f"{place.file(file)}: is no run's folder, and no file of weights ({', '.join(WEIGHTS)})")
    numbers = re.findall(r"step[-_=]?(\d{1,18})(?!\d)", file)
    opened = {int(numbers[-1]) if numbers else 0: partial(_open_file, place, file)}
    return Models(place.file(file), "safetensors", opened, place.mapping("config.json"), base, everything=everything)


def _open_file(place: Place, file: str) -> Tensors:
    return read_weights(place, file) if file.endswith(".safetensors") else read_pickled(place, file)


def _checkpoints(place: Place, names: list[str], steps: dict[int, str], base: BaseLike, everything: bool) -> Source:
    folders = {step: place.folder(name) for step, name in steps.items()}
    listed = {step: folder.names() for step, folder in folders.items()}
    last = folders[max(folders)]
    step, log = trainer_log(place if "trainer_state.json" in names else last)
    with_adapters = [step for step, found in listed.items() if ADAPTER_CONFIG in found]
    if with_adapters:
        odd = sorted(set(steps) - set(with_adapters))
        if odd:
            raise RecordError(
                f"{folders[odd[0]].where}: has no {ADAPTER_CONFIG}, other checkpoints here do; move it away"
            )
        if step is not None and step not in folders and ADAPTER_CONFIG in names:
            folders[step] = place
        return Adapters(place.where, dict(sorted(folders.items())), base, log)
    readers = {at: _reader(folder, listed[at]) for at, folder in folders.items()}
    if step is not None and step not in readers and weights_file(names):
        readers[step] = _reader(place, names)
    config = last.mapping("config.json") or place.mapping("config.json")
    is_dcp = any(DCP_METADATA in found or FSDP in found for found in listed.values())
    format = "dcp" if is_dcp else "transformers"
    return Models(place.where, format, readers, config, open_base(base), everything=everything, log=log)


def _reader(place: Place, names: Sequence[str]) -> Callable[[], Tensors]:
    """Return what opens the model in a folder; the folder is looked at now, the model when it is needed."""
    file = weights_file(names)
    if file is not None:
        return partial(read_weights, place, file)
    if DCP_METADATA in names:
        return partial(read_dcp, place)
    if FSDP in names:
        return partial(read_dcp, place.folder(FSDP))
    own = [name for name in names if name.endswith(FILES) and name not in NO_WEIGHTS and not SHARD.fullmatch(name)]
    if len(own) == 1:
        return partial(_open_file, place, own[0])
    raise RecordError(
        f"{place.where}: holds no model weights (there are {', '.join(names[:8]) or 'no files'}); {_hint(names)}"
    )


NO_WEIGHTS = ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "scaler.pt", "optimizer.bin")


def _hint(names: Sequence[str]) -> str:
    if any(name.startswith("global_step") for name in names) or "zero_to_fp32.py" in names:
        return "DeepSpeed's shards are put together by the zero_to_fp32.py beside them"
    if any(SHARD.fullmatch(name) for name in names):
        return "shards are read by their index (model.safetensors.index.json), which is missing"
    return "move it away, or save the model there"


def _models(place: Place, names: list[str], base: BaseLike, everything: bool) -> Source:
    step, log = trainer_log(place)
    config = place.mapping("config.json")
    opened = open_base(base)
    if weights_file(names) or DCP_METADATA in names or FSDP in names:
        format = "transformers" if weights_file(names) else "dcp"
        readers = {step or 0: _reader(place, names)}
        return Models(place.where, format, readers, config, opened, everything=everything, log=log)
    files = [name for name in names if name.endswith(".safetensors")]
    files = files or [name for name in names if name.endswith(FILES) and name not in NO_WEIGHTS]
    if not files:
        raise RecordError(
            f"{place.where}: is not a recorded run (it has no {MANIFEST}), nor what else can be read: {READABLE}"
        )
    if any(SHARD.fullmatch(name) for name in files):
        raise RecordError(f"{place.where}: {_hint(files)}")
    if len(files) == 1:
        return _one_file(place, files[0], opened, everything)
    try:
        by_step = step_in(files)
    except RecordError as error:
        raise RecordError(f"{place.where}: {error}") from None
    found = {at: partial(_open_file, place, name) for at, name in by_step.items()}
    return Models(place.where, "safetensors", found, config, opened, everything=everything, log=log)


def _model_reader(path: str | Path) -> Callable[[], Tensors]:
    place, file = place_of(path)
    return partial(_open_file, place, file) if file is not None else _reader(place, _names(place))


def _names(place: Place) -> list[str]:
    """What is in a folder; where a web server does not list it, which of the usual names are there."""
    try:
        found = place.names()
    except NotListedError:
        found = [name for name in TRIED if place.has(name)]
        if not found:
            raise
    return found or [name for name in TRIED if place.has(name)]

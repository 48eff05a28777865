"""Which of a folder's files are its model, and how they are read."""

import re
from collections.abc import Callable, Sequence
from functools import partial

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.location import Folder
from deltaw.analysis.records.storage import FILES, Storage
from deltaw.analysis.records.tensors import Tensors, read_pickled, read_weights, weights_file

DCP_METADATA = ".metadata"  # the file by which a folder of torch.distributed.checkpoint is known
FSDP = "pytorch_model_fsdp_0"  # where transformers and accelerate put the shards of FSDP
SHARD = re.compile(r".*-\d{5}-of-\d{5}\.\w+")
NO_WEIGHTS = ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "scaler.pt", "optimizer.bin")


def has_model(names: Sequence[str]) -> bool:
    """Return whether a model stands there under one of the names that its libraries give it."""
    return weights_file(names) is not None or is_sharded(names)


def is_sharded(names: Sequence[str]) -> bool:
    """Return whether these are the names in a folder of torch.distributed.checkpoint."""
    return DCP_METADATA in names or FSDP in names


def model_reader(folder: Folder) -> Callable[[], Tensors]:
    """Return what opens the model in a folder; the folder is looked at now, the model when it is needed.

    Raises:
        RecordError: There is no model, or no telling which file it is.
    """
    storage, names = folder.storage, folder.names
    file = weights_file(names)
    if file is not None:
        return partial(read_weights, storage, file)
    if is_sharded(names):
        return partial(_read_sharded, storage if DCP_METADATA in names else storage.folder(FSDP))
    own = [name for name in model_files(names) if not SHARD.fullmatch(name)]
    if len(own) == 1:
        return partial(read_file, storage, own[0])
    raise RecordError(
        f"{storage.where}: holds no model weights (there are {', '.join(names[:8]) or 'no files'}); {hint(names)}"
    )


def read_file(storage: Storage, file: str) -> Tensors:
    """Return the tensors of one file.

    Raises:
        RecordError: It is damaged, or a pickle that needs code to run.
    """
    return read_weights(storage, file) if file.endswith(".safetensors") else read_pickled(storage, file)


def model_files(names: Sequence[str]) -> list[str]:
    """Return the names that may be a model's: no optimizer's, scheduler's or random state's."""
    return [name for name in names if name.endswith(FILES) and name not in NO_WEIGHTS]


def hint(names: Sequence[str]) -> str:
    """Return what to do with a folder that has no model that can be read."""
    if any(name.startswith("global_step") for name in names) or "zero_to_fp32.py" in names:
        return "DeepSpeed's shards are put together by the zero_to_fp32.py beside them"
    if any(SHARD.fullmatch(name) for name in names):
        return "shards are read by their index (model.safetensors.index.json), which is missing"
    return "move it away, or save the model there"


def _read_sharded(storage: Storage) -> Tensors:
    from deltaw.analysis.records.dcp import ShardedTensors  # it needs torch to read the metadata

    return ShardedTensors(storage)

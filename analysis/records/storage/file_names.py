"""File names: those of a model, of a part of one, of a helper of the training, and of a step.

Only names are looked at here, so this is where the habits of other tools are kept.
"""

import re
from collections.abc import Collection, Sequence

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.names import CONFIG
from deltaw.analysis.records.storage.files import FILES

# The names under which transformers, diffusers and accelerate save a model's weights, the preferred one first.
SAFE = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.safetensors")
PICKLED = ("pytorch_model.bin", "diffusion_pytorch_model.bin")
SHARDED = ".index.json"
DCP_METADATA = ".metadata"  # the file by which a folder of torch.distributed.checkpoint is known
FSDP = "pytorch_model_fsdp_0"  # where transformers and accelerate put the shards of FSDP

# checkpoint-500 (transformers), step1000-unsharded and step1000-tokens4B (OLMo), epoch_0_step_20 (NeMo),
# iter_0000100 (Megatron), global_step_10 (verl), global_step1000 (DeepSpeed)
_STEP_FOLDER = re.compile(
    r"(?:epoch[-_=]?\d+[-_])?(?:checkpoint|ckpt|step|iter|iteration|global_?step|epoch)[-_=]?(\d{1,18})"
    r"(?:-(?:un)?sharded|-tokens\d+[A-Za-z]?)?"
)
_STEP_WORD = re.compile(r"(?:step|checkpoint|ckpt|iter|iteration)s?[-_=]?(?:\d+[-_])?(\d{1,18})(?!\d)", re.IGNORECASE)
_HELPER = re.compile(
    r"(?:.*[-_.])?optim(?:izer)?(?:[-_.].*)?|(?:lr_)?schedulers?(?:_\d+)?|(?:grad_)?scaler|training_args|"
    r"rng_states?(?:_\d+)?|random_states?(?:_\d+)?|(?:data)?sampler(?:_\d+)?|data(?:loader|set)?(?:_state)?(?:_\d+)?|"
    r"train(?:er)?(?:_state)?|recipe_state|extra_state(?:_.*)?"
)
# A number after one of these counts the parts of one model, not its steps.
_PART = re.compile(
    r"(?:^|[-_.])(?:(?:mp|tp|pp|dp|ep|world_size_\d+)_)?(?:consolidated\.|(?:rank|shard|layer|part|stage)[-_]?)\d+"
    r"|^hf_model_\d+|-\d{5}-of-\d{5}\.",
    re.IGNORECASE,
)


def weights_file(names: Collection[str]) -> str | None:
    """Return under which name a folder has a model's weights, or the index of their shards; ``None`` if it has none."""
    for stem in (*SAFE, *PICKLED):
        for name in (stem, stem + SHARDED):
            if name in names:
                return name
    return None


def is_sharded(names: Collection[str]) -> bool:
    """Return whether these are the names in a folder of torch.distributed.checkpoint."""
    return DCP_METADATA in names or FSDP in names


def has_model(names: Collection[str]) -> bool:
    """Return whether a model stands there under one of the names that its libraries give it."""
    return weights_file(names) is not None or is_sharded(names)


def model_files(names: Collection[str]) -> list[str]:
    """Return the names that may be a model's: no optimizer's, scheduler's, random state's or data loader's.

    Example:
        >>> model_files(["last.pt", "optimizer.pt", "rng_state_0.pth", "scheduler.bin", "data.pt", "notes.txt"])
        ['last.pt']
    """
    return [name for name in names if name.endswith(FILES) and not _HELPER.fullmatch(name.rpartition(".")[0])]


def parts_of_one(names: Collection[str]) -> list[str]:
    """Return the files that are parts of one model by their names, where there are at least two.

    Example:
        >>> parts_of_one(["consolidated.00.pth", "consolidated.01.pth"]), parts_of_one(["consolidated.00.pth"])
        (['consolidated.00.pth', 'consolidated.01.pth'], [])
        >>> parts_of_one(["step-100.safetensors", "step-200.safetensors"])
        []
    """
    found = [name for name in model_files(names) if _PART.search(name)]
    return found if len(found) > 1 else []


def is_readable(names: Collection[str]) -> bool:
    """Return whether a folder of these names holds a model or an adapter that can be opened."""
    return has_model(names) or CONFIG in names or (bool(model_files(names)) and not parts_of_one(names))


def unreadable(names: Sequence[str]) -> str:
    """Return why a folder of these names has no model that can be read, and what to do."""
    parts = parts_of_one(names)
    files = f"{', '.join(parts[:4])}{', …' if len(parts) > 4 else ''}"
    if "zero_to_fp32.py" in names or any(name.startswith(("zero_pp_rank", "bf16_zero_pp_rank")) for name in names):
        return "DeepSpeed's ZeRO shards are put together by the zero_to_fp32.py beside them"
    if any("-of-" in name for name in parts):
        return "shards are read by their index (model.safetensors.index.json), which is missing"
    if parts:
        return (
            f"{files} are parts of one model, no steps; put them together with the tool that wrote them, and save the "
            "model whole"
        )
    return "move it away, or save the model there"


def folder_step(name: str) -> int | None:
    """Return the step that the name of a folder says, ``None`` where it says none.

    Example:
        >>> [folder_step(name) for name in ("checkpoint-500", "step1000-unsharded", "epoch_0_step_20", "latest")]
        [500, 1000, 20, None]
    """
    found = _STEP_FOLDER.fullmatch(name)
    return int(found.group(1)) if found else None


def file_step(name: str) -> int | None:
    """Return the step that the name of a file says with a word, ``None`` where there is no such word.

    Example:
        >>> file_step("epoch1-step20.safetensors"), file_step("checkpoint_1_500.pt"), file_step("model-7.pt")
        (20, 500, None)
    """
    found = _STEP_WORD.findall(re.sub(r"\.[A-Za-z]+$", "", name))
    return int(found[-1]) if found else None


def steps_of_files(names: Sequence[str]) -> dict[int, str]:
    """Return the files by the step that their names hold: the number after "step" and the like, or the only one.

    Raises:
        RecordError: A name holds no number, two hold the same, or they are parts of one model; names them.

    Example:
        >>> steps_of_files(["w-epoch1-step20.safetensors", "w-epoch1-step40.safetensors"])
        {20: 'w-epoch1-step20.safetensors', 40: 'w-epoch1-step40.safetensors'}
    """
    if parts_of_one(names):
        raise RecordError(unreadable(names))
    found: dict[int, str] = {}
    for name in names:
        stem = re.sub(r"\.[A-Za-z]+$", "", name)
        step = file_step(name)
        numbers = re.findall(r"\d+", stem) if step is None else [str(step)]
        if len(numbers) != 1 or len(numbers[0]) > 18:
            raise RecordError(f"{name!r} does not say its step; name the files as step-100{name[len(stem) :]}")
        step = int(numbers[0])
        if step in found:
            raise RecordError(f"{found[step]!r} and {name!r} both say step {step}; open one of them by its name")
        found[step] = name
    return found

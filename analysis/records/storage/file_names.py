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
# The names under which other tools than PEFT save an adapter: diffusers, LitGPT, MLX-LM, AdapterHub.
ADAPTERS = (
    "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "lit_model.pth.lora", "adapters.safetensors",
    "adapter.safetensors", "pytorch_adapter.bin",
)  # fmt: skip
DCP_METADATA = ".metadata"  # the file by which a folder of torch.distributed.checkpoint is known
UNIVERSAL = "zero"  # the folder of parameters in DeepSpeed's universal checkpoint
FSDP = "pytorch_model_fsdp_0"  # where transformers and accelerate put the shards of FSDP

# checkpoint-500 (transformers), step1000-unsharded and step1000-tokens4B (OLMo), epoch_0_step_20 (NeMo Automodel),
# iter_0000100 (Megatron), global_step_10 (verl), global_step1000 and global_step1000_universal (DeepSpeed),
# epoch=0-step=20.ckpt (Lightning), ep0-ba20 (Composer)
_STEP_FOLDER = re.compile(
    r"(?:epoch[-_=]?\d+[-_])?(?:checkpoint|ckpt|step|iter|iteration|global_?step|epoch)[-_=]?(\d{1,18})"
    r"(?:-(?:un)?sharded|-tokens\d+[A-Za-z]?|_universal|\.ckpt)?"
    r"|ep\d+-ba(\d{1,18})"
)
# gpt--val_loss=5.6-step=100-consumed_samples=800.0 (NeMo): one search with nothing before it that could repeat
_STEP_FIELD = re.compile(r"(?:^|(?<=-))step=(\d{1,18})(?![\w.])")
_STEP_WORD = re.compile(
    r"(?:step|checkpoint|ckpt|iter|iteration|(?<=\d-)ba)s?[-_=]?(?:\d+[-_])?(\d{1,18})(?!\d)", re.IGNORECASE
)
# checkpoint_1_500 (fairseq) is epoch 1, step 500; beside it stand whole epochs and copies, with no step in their names
_EPOCH_AND_STEP = re.compile(r"checkpoint_\d{1,18}_\d{1,18}")
_NO_STEP = re.compile(r"checkpoint(?:\d{1,18}|_best|_last)")
MEGATRON = "model_optim_rng"  # Megatron's model, with the optimizer in one file
_HELPER = re.compile(
    r"(?:.*[-_.])?optim(?:izer)?(?:[-_.].*)?|(?:lr_)?schedulers?(?:_\d+)?|(?:grad_)?scaler|training_args|"
    r"rng_states?(?:_\d+)?|random_states?(?:_\d+)?|(?:data)?sampler(?:_\d+)?|data(?:loader|set)?(?:_state)?(?:_\d+)?|"
    r"train(?:er)?(?:_state)?|recipe_state|extra_state(?:_.*)?"
)
_END = re.compile(r"[-_](?:step|epoch)?[-_]?(\d{1,18})\.[A-Za-z]+$")  # of a file of kohya's: -000001, -step00000500
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


def adapter_file(names: Collection[str]) -> str | None:
    """Return under which name a folder has an adapter of another tool than PEFT, ``None`` if it has none."""
    return next((name for name in ADAPTERS if name in names), None)


def is_sharded(names: Collection[str]) -> bool:
    """Return whether these are the names in a folder of torch.distributed.checkpoint."""
    return DCP_METADATA in names or FSDP in names


def is_universal(names: Collection[str]) -> bool:
    """Return whether these are the names in a universal checkpoint of DeepSpeed."""
    return UNIVERSAL in names and any(name.endswith("_model_states.pt") for name in names)


def has_model(names: Collection[str]) -> bool:
    """Return whether a model stands there under one of the names that its libraries give it."""
    return weights_file(names) is not None or is_sharded(names) or is_universal(names)


def model_files(names: Collection[str]) -> list[str]:
    """Return the names that may be a model's: no optimizer's, scheduler's, random state's or data loader's.

    Example:
        >>> model_files(["last.pt", "optimizer.pt", "rng_state_0.pth", "scheduler.bin", "data.pt", "notes.txt"])
        ['last.pt']
    """
    stems = ((name, name.rpartition(".")[0]) for name in names if name.endswith(FILES))
    return [name for name, stem in stems if stem == MEGATRON or not _HELPER.fullmatch(stem)]


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
    return (
        has_model(names)
        or adapter_file(names) is not None
        or CONFIG in names
        or (bool(model_files(names)) and not parts_of_one(names))
    )


def unreadable(names: Sequence[str]) -> str:
    """Return why a folder of these names has no model that can be read, and what to do."""
    parts = parts_of_one(names)
    files = f"{', '.join(parts[:4])}{', …' if len(parts) > 4 else ''}"
    if "zero_to_fp32.py" in names or any(name.startswith(("zero_pp_rank", "bf16_zero_pp_rank")) for name in names):
        return "DeepSpeed's ZeRO shards are put together by the zero_to_fp32.py beside them, or by its ds_to_universal"
    if any("-of-" in name for name in parts):
        return "shards are read by their index (model.safetensors.index.json), which is missing"
    if parts:
        return f"{files} are parts of one model, no steps; {_together(parts[0])}"
    ranks = [name for name in names if name.startswith("mp_rank_")]
    if len(ranks) > 1:
        return f"{', '.join(ranks[:4])} are parts of one model, no steps; {_together(ranks[0])}"
    return NO_PARTS


NO_PARTS = "move it away, or save the model there"  # where nothing more is known
# What puts the parts together, by how their names begin.
_TOOLS = {
    "consolidated": "transformers' convert_llama_weights_to_hf.py makes one model of them",
    "mp_rank": "Megatron Bridge (or Megatron-LM's tools/checkpoint/convert.py) makes one model of them",
    "model_world_size": "verl makes one model of them: python -m verl.model_merger merge --backend fsdp",
    "model_fsdp": "save FSDP's full or sharded state dict, which can be read",
    "pytorch_model_fsdp": "save FSDP's full or sharded state dict, which can be read",
    "layer_": "GPT-NeoX's tools/ckpts/convert_neox_to_hf.py makes one model of them",
    "hf_model": "give torchtune's checkpointer safe_serialization=True, or the index of its shards",
}


def _together(part: str) -> str:
    """Return what to do with the parts of a model, by the name of one."""
    found = next((advice for begin, advice in _TOOLS.items() if part.startswith(begin)), None)
    return found or "put them together with the tool that wrote them, and save the model whole"


def folder_step(name: str) -> int | None:
    """Return the step that the name of a folder says, ``None`` where it says none.

    Example:
        >>> [folder_step(name) for name in ("checkpoint-500", "step1000-unsharded", "epoch_0_step_20", "latest")]
        [500, 1000, 20, None]
        >>> [folder_step(name) for name in ("gpt--val_loss=5.6-step=100-consumed_samples=800.0", "ep0-ba20")]
        [100, 20]
    """
    found = _STEP_FOLDER.fullmatch(name)
    if found:
        return int(found.group(1) or found.group(2))
    fields = _STEP_FIELD.findall(name)
    return int(fields[0]) if len(fields) == 1 and len(name) <= 255 else None


def without_copies(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files that are a run's steps, and fairseq's beside them that are not: epochs without a step, copies.

    Example:
        >>> without_copies(["checkpoint_1_500.pt", "checkpoint_1_1000.pt", "checkpoint1.pt", "checkpoint_best.pt"])
        (['checkpoint_1_500.pt', 'checkpoint_1_1000.pt'], ['checkpoint1.pt', 'checkpoint_best.pt'])
        >>> without_copies(["checkpoint1.pt", "last.pt"])
        (['checkpoint1.pt', 'last.pt'], [])
    """
    if not any(_EPOCH_AND_STEP.fullmatch(name.rpartition(".")[0]) for name in names):
        return list(names), []
    aside = [name for name in names if _NO_STEP.fullmatch(name.rpartition(".")[0])]
    return [name for name in names if name not in aside], aside


def file_step(name: str) -> int | None:
    """Return the step that the name of a file says with a word, ``None`` where there is no such word.

    Example:
        >>> file_step("epoch1-step20.safetensors"), file_step("checkpoint_1_500.pt"), file_step("model-7.pt")
        (20, 500, None)
    """
    found = _STEP_WORD.findall(re.sub(r"\.[A-Za-z]+$", "", name))
    return int(found[-1]) if found else None


def steps_of_adapters(names: Sequence[str]) -> dict[int, str]:
    """Return the files of adapters by step, as ``steps_of_files``; of last-000001 and last, those with a number.

    Raises:
        RecordError: As ``steps_of_files``.

    Example:
        >>> steps_of_adapters(["last-000001.safetensors", "last-000002.safetensors", "last.safetensors"])
        {1: 'last-000001.safetensors', 2: 'last-000002.safetensors'}
    """
    ends = {name: _END.search(name) for name in names}
    stems = {name[: end.start()] if end else name.rpartition(".")[0] for name, end in ends.items()}
    steps = {int(end.group(1)): name for name, end in ends.items() if end}
    plain = [name for name, end in ends.items() if not end]
    if len(stems) == 1 and len(plain) <= 1 and len(steps) == len(names) - len(plain) > 0:
        return steps
    return steps_of_files(names)


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
            raise RecordError(
                f"{name!r} does not say its step; name the files as step-100{name[len(stem) :]}, or open one "
                "of them by its name"
            )
        step = int(numbers[0])
        if step in found:
            raise RecordError(f"{found[step]!r} and {name!r} both say step {step}; open one of them by its name")
        found[step] = name
    return found

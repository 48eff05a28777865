"""Adapters in PEFT's format: write a folder that ``peft.PeftModel.from_pretrained`` loads, and read one.

PEFT itself is not needed for either: a folder is ``adapter_config.json`` and ``adapter_model.safetensors``. The names
are those of PEFT 0.21, see its classes ``LoraConfig``, ``VeraConfig``, ``HiraConfig`` and ``RandLoraConfig``.
"""

import contextlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deltaw.adapters.effective import base_weight
from deltaw.adapters.errors import DataError, OptionError, ShapeError, TargetError, WriteError
from deltaw.adapters.injection import (
    adapted,
    find_module,
    fitting_tensors,
    is_adaptable,
    is_conv1d,
    layer_over,
    linear_shape,
    replace_module,
)
from deltaw.adapters.layer import WIDENED, AdaptedLayer
from deltaw.adapters.linear.norms import constant_norms
from deltaw.adapters.method import Method, RankedMethod
from deltaw.adapters.methods.dora import DoRA
from deltaw.adapters.methods.hira import HiRA
from deltaw.adapters.methods.lora import LoRA
from deltaw.adapters.methods.lora_fa import FrozenDown
from deltaw.adapters.methods.pissa import PiSSA
from deltaw.adapters.methods.randlora import RandLoRA
from deltaw.adapters.methods.vera import VeRA
from deltaw.adapters.quantization import compute_dtype, is_quantized

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
MERGE = "call merge(model) and model.save_pretrained(folder) for a plain model instead"
UNLOAD = "load it with PEFT, call merge_and_unload(), and start from that plain model"
CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)  # PEFT cannot wrap what has no forward

# PEFT's name of a tensor, by the kind of the folder, and ours.
NAMES: dict[str, dict[str, str]] = {
    "LORA": {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B", "lora_magnitude_vector": "magnitude"},
    "VERA": {"vera_lambda_d": "vera_d", "vera_lambda_b": "vera_b"},
    "HIRA": {"hira_A": "hira_A", "hira_B": "hira_B"},
    "RANDLORA": {"randlora_lambda": "randlora_lambda", "randlora_gamma": "randlora_gamma"},
}
SHARED = {"VERA": ("vera_A", "vera_B"), "RANDLORA": ("randlora_A", "randlora_B")}
# Settings that are read below, or that no longer matter once the tensors are there. Any other that is on is refused.
UNDERSTOOD = frozenset(
    re.findall(
        r"\w+",
        """
    alpha_pattern auto_mapping base_model_name_or_path bias corda_config d_initial eva_config exclude_modules
    fan_in_fan_out hira_dropout inference_mode init_lora_weights init_weights layers_pattern layers_to_transform
    loftq_config lora_alpha lora_dropout lora_ga_config megatron_core modules_to_save peft_type peft_version
    projection_prng_key qalora_group_size r randlora_alpha randlora_dropout rank_pattern revision runtime_config
    save_projection sparse target_modules task_type use_dora use_rslora vera_dropout very_sparse
    """,
    )
)
LEAVES_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # starts of LoRA that don't change W₀

Config = dict[str, Any]
Tensors = dict[str, Tensor]


def save_peft(model: nn.Module, folder: str | Path) -> None:
    """Write a model's adapters as a folder that ``peft.PeftModel.from_pretrained(base, folder)`` loads.

    What PEFT makes of it has the same forward in evaluation, up to rounding. The files appear whole or not at all.

    - LoRA, rsLoRA, DoRA by rows, VeRA, HiRA and RandLoRA are written as such (an s that PEFT has not, into b or B).
    - LoRA+, LoRA-FA, AsyLoRA, OA: as LoRA, with their A and B.
    - Whatever else has factors ΔW = U V (PiSSA, CorDA, Delta-LoRA, SBoRA, …): as LoRA on W₀ with A = V, B = U and
      s = 1; of rank 2r for PiSSA and CorDA.
    - Trainable parameters outside the adapters: as ``modules_to_save``.

    RandLoRA: PEFT pairs the rows of its bases otherwise than the paper does, in a way that depends on their number
    n = ⌈min(out, in) / r⌉. The bases are put in its order, which serves all layers only if they have the same n. (PEFT
    warns of missing keys on loading: it expects a copy of the bases for every layer; they are in the file once.)

    Arguments:
        model: A model with adapted layers.
        folder: Made if it is not there; other files in it are left alone.

    Raises:
        TargetError: The model has no adapted layer.
        OptionError: A method, or the mix of methods, has no counterpart in PEFT.
        WriteError: The disk is full or cannot be written to.

    Example:
        >>> import tempfile
        >>> from deltaw.adapters import LoRA, adapted, inject, load_peft, save_peft
        >>> folder = tempfile.mkdtemp()
        >>> save_peft(inject(nn.Sequential(nn.Linear(6, 4)), LoRA(rank=2), targets=["0"]), folder)
        >>> adapted(load_peft(nn.Sequential(nn.Linear(6, 4)), folder))["0"].method
        LoRA(rank=2, alpha=2, dropout=0.0, rank_stabilized=False)
    """
    layers = adapted(model)
    if not layers:
        raise TargetError("the model has no adapted layer to save; call inject(model, method, targets) first")
    heads = _trained_modules(model, layers)
    kinds = {_kind(name, layer) for name, layer in layers.items()}
    if len(kinds) > 1 and all(layer.factors() is not None for layer in layers.values()):
        kinds = {"lora"}
    if len(kinds) > 1:
        named = ", ".join(sorted({layer.method.name for layer in layers.values()}))
        raise OptionError(f"PEFT has no adapter that holds {named} at once; {MERGE}")
    config, tensors = WRITERS[kinds.pop()](layers)
    where = getattr(model, "name_or_path", None)
    config |= {
        "base_model_name_or_path": where if isinstance(where, str) and where else None,
        "fan_in_fan_out": any(layer.transposed for layer in layers.values()),
        "inference_mode": True,
        "modules_to_save": heads or None,
        "target_modules": _target_modules(model, layers),
        "task_type": None,
    }
    for head in heads:
        state = model.get_submodule(head).state_dict()
        tensors |= {f"{PREFIX}{head}.{key}": value for key, value in state.items()}
    _write(Path(folder).resolve(), config, tensors)


def _kind(name: str, layer: AdaptedLayer) -> str:
    method = layer.method
    if isinstance(method, DoRA) and method.axis == "row":
        return "dora"
    for kind, of in (("vera", VeRA), ("hira", HiRA), ("randlora", RandLoRA)):
        if isinstance(method, of):
            return kind
    if layer.factors() is not None:
        return "lora"
    raise OptionError(
        f"{method.name} (module {name!r}) has no counterpart in PEFT; what has one: lora, rslora, dora-row, vera, "
        "hira, randlora, and as plain LoRA lora+, lora-fa, asylora, oa, pissa, corda, delta-lora, sbora-fa, sbora-fb; "
        + MERGE
    )


def _write_lora(layers: Mapping[str, AdaptedLayer]) -> tuple[Config, Tensors]:
    """LoRA, rsLoRA, DoRA, and all that is a product of two matrices."""
    methods = {name: _ranked(layer) for name, layer in layers.items()}
    dora = all(isinstance(method, DoRA) for method in methods.values())
    stabilized = all(getattr(method, "rank_stabilized", False) for method in methods.values())
    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, layer in layers.items():
        method, state = methods[name], layer.state()
        own = isinstance(method, (LoRA, FrozenDown, DoRA))
        A, B = (state["lora_A"], state["lora_B"]) if own else _factors(layer)
        scaling = method.scaling if own else 1.0
        ranks[name] = len(A)
        alphas[name] = scaling * (math.sqrt(len(A)) if stabilized else len(A))
        if own and getattr(method, "rank_stabilized", False) == stabilized:
            alphas[name] = len(A) if method.alpha is None else method.alpha  # as given, without a rounding
        tensors |= {f"{PREFIX}{name}.lora_A.weight": A, f"{PREFIX}{name}.lora_B.weight": B}
        if dora:
            if not bool(constant_norms(layer.base, A, B, scaling, "row").all()):
                raise OptionError(
                    f"W₀ + s·B A of module {name!r} has a zero row, by which PEFT's DoRA divides; {MERGE}"
                )
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = state["magnitude"]
    r, rank_pattern = _patterns_of(ranks)
    alpha, alpha_pattern = _patterns_of(
        {name: int(value) if value == int(value) else value for name, value in alphas.items()}
    )
    config = {"peft_type": "LORA", "r": r, "rank_pattern": rank_pattern, "lora_alpha": alpha}
    config |= {"alpha_pattern": alpha_pattern, "lora_dropout": _one(methods, "dropout")}
    return config | {"use_rslora": stabilized, "use_dora": dora, "init_lora_weights": True}, tensors


def _factors(layer: AdaptedLayer) -> tuple[Tensor, Tensor]:
    """V (r, in) and U (out, r) of ΔW = U V, r at most the smaller side of ΔW."""
    found = layer.factors()
    if found is None:
        raise OptionError(f"{layer.method.name} has no factors; {MERGE}")
    U, V = found
    smaller = min(layer.out_features, layer.in_features)
    if len(V) <= smaller:
        return V, U
    identity = torch.eye(smaller, dtype=U.dtype, device=U.device)
    return (U @ V, identity) if layer.out_features <= layer.in_features else (identity, U @ V)


def _write_vera(layers: Mapping[str, AdaptedLayer]) -> tuple[Config, Tensors]:
    """VeRA; PEFT has s = 1, so s goes into b."""
    methods = {name: _ranked(layer) for name, layer in layers.items()}
    rank, dropout = _one(methods, "rank"), _one(methods, "dropout")
    rows, columns = (
        max(sides)
        for sides in zip(*((layer.out_features, layer.in_features) for layer in layers.values()), strict=True)
    )
    tensors = {
        "base_model.vera_A": _common([layer.tensor("vera_A") for layer in layers.values()], (rank, columns)),
        "base_model.vera_B": _common([layer.tensor("vera_B") for layer in layers.values()], (rows, rank)),
    }
    for name, layer in layers.items():
        tensors[f"{PREFIX}{name}.vera_lambda_d"] = layer.tensor("vera_d")
        tensors[f"{PREFIX}{name}.vera_lambda_b"] = methods[name].scaling * layer.tensor("vera_b")
    return {"peft_type": "VERA", "r": rank, "vera_dropout": dropout, "save_projection": True}, tensors


def _write_hira(layers: Mapping[str, AdaptedLayer]) -> tuple[Config, Tensors]:
    """HiRA; PEFT has s = 1, so s goes into B, and overlooks its rank_pattern, so lower ranks are filled with zeros."""
    methods = {name: _ranked(layer) for name, layer in layers.items()}
    rank = max(method.rank for method in methods.values())
    tensors: Tensors = {}
    for name, layer in layers.items():
        spare = rank - methods[name].rank
        tensors[f"{PREFIX}{name}.hira_A"] = F.pad(layer.tensor("hira_A"), (0, 0, 0, spare))
        tensors[f"{PREFIX}{name}.hira_B"] = F.pad(methods[name].scaling * layer.tensor("hira_B"), (0, spare))
    return {"peft_type": "HIRA", "r": rank, "hira_dropout": _one(methods, "dropout")}, tensors


def _write_randlora(layers: Mapping[str, AdaptedLayer]) -> tuple[Config, Tensors]:
    """RandLoRA, with its bases in PEFT's order and of PEFT's sizes."""
    methods = {name: _ranked(layer) for name, layer in layers.items()}
    rank, dropout, scaling = (_one(methods, key) for key in ("rank", "dropout", "scaling"))
    sides = [
        max(side) for side in zip(*((layer.out_features, layer.in_features) for layer in layers.values()), strict=True)
    ]
    smaller, larger = sorted(sides)  # of PEFT's A and B, which may be above those of any layer
    n = -(-smaller // rank)
    parts = [_reordered(layer.tensor("randlora_B"), rank, "ours") for layer in layers.values()]
    B = _common(parts, (n * rank, larger))
    A = _common([layer.tensor("randlora_A") for layer in layers.values()], (rank, smaller))
    tensors = {
        "base_model.randlora_A": A.view(rank, 1, smaller),
        "base_model.randlora_B": B.T.reshape(larger, n, rank),
    }
    for name, layer in layers.items():
        tensors[f"{PREFIX}{name}.randlora_lambda"] = layer.tensor("randlora_lambda").T  # (r, n)
        tensors[f"{PREFIX}{name}.randlora_gamma"] = layer.tensor("randlora_gamma")
    alpha = scaling * rank
    config = {"peft_type": "RANDLORA", "r": rank, "randlora_alpha": int(alpha) if alpha == int(alpha) else alpha}
    return config | {"randlora_dropout": dropout, "save_projection": True}, tensors


def _reordered(B: Tensor, rank: int, order: str) -> Tensor:
    """Return B (n·r, larger side) with row j·r + k, column k of base j, at row k·n + j as PEFT has it; or back."""
    n = len(B) // rank
    apart = B.view(n, rank, -1) if order == "ours" else B.view(rank, n, -1)
    return apart.transpose(0, 1).reshape(len(B), -1)


WRITERS: dict[str, Callable[[Mapping[str, AdaptedLayer]], tuple[Config, Tensors]]] = {
    "lora": _write_lora,
    "dora": _write_lora,
    "vera": _write_vera,
    "hira": _write_hira,
    "randlora": _write_randlora,
}


def _ranked(layer: AdaptedLayer) -> RankedMethod:
    if not isinstance(layer.method, RankedMethod):
        raise OptionError(f"{layer.method.name} has no rank; {MERGE}")
    return layer.method


def _one(methods: Mapping[str, RankedMethod], option: str) -> Any:
    """Return the value that all modules have in common."""
    values = {getattr(method, option) for method in methods.values()}
    if len(values) > 1:
        raise OptionError(f"PEFT has one {option} for all modules, but here there are {sorted(values)}; {MERGE}")
    return values.pop()


def _patterns_of(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the commonest value, and a pattern for every module that has another."""
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {f"^{re.escape(name)}": value for name, value in values.items() if value != common}


def _common(parts: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
    """Return the matrix of which every part is the first rows and columns."""
    whole = parts[0].new_zeros(shape, device="cpu")
    for part in parts:
        whole[: part.shape[0], : part.shape[1]] = part.detach().cpu()
    for part in parts:
        if not torch.equal(whole[: part.shape[0], : part.shape[1]], part.detach().cpu()):
            raise OptionError(
                "PEFT shares one A and one B among all layers, and here the layers' differ (they were not drawn "
                f"together, or RandLoRA has layers with different numbers ⌈min(out, in) / rank⌉ of bases); {MERGE}"
            )
    return whole


def _target_modules(model: nn.Module, layers: Mapping[str, AdaptedLayer]) -> list[str] | str:
    """Return the full names, or an expression where PEFT, which looks at a name's end, would take them for others."""
    for name, _ in model.named_modules():
        parts = name.split(".")
        if name not in layers and any(".".join(parts[k:]) in layers for k in range(1, len(parts))):
            return "|".join(re.escape(target) for target in layers)
    return list(layers)


def _trained_modules(model: nn.Module, layers: Mapping[str, AdaptedLayer]) -> list[str]:
    """Return the largest modules that train as a whole beside the adapters."""
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    carrying = _with_parents(layers)
    partly = carrying | _with_parents(name.rpartition(".")[0] for name, p in parameters.items() if not p.requires_grad)
    found: list[str] = []
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        if not parameter.requires_grad or (owner in layers and leaf not in ("weight", "bias")):
            continue
        whole = [place for place in _with_parents([owner]) - partly if not isinstance(modules[place], CONTAINERS)]
        if not whole:
            raise OptionError(
                f"parameter {name!r} is trainable, but its module {owner!r} is not as a whole, and PEFT saves whole "
                f"modules beside an adapter; freeze it or train the module, or {MERGE}"
            )
        found.append(min(whole, key=len))
    found = list(dict.fromkeys(found))
    taken = [name for name in modules if name and found and name.endswith(tuple(found))]  # what PEFT makes of the names
    wrong = [name for name in taken if name in carrying or isinstance(modules[name], CONTAINERS)]
    wrong += [name for name in taken if any(name.startswith(f"{other}.") for other in taken)]
    wrong += [name for name in layers if any(re.match(rf"(^|.*\.){head}($|\..*)", name) for head in found)]
    if wrong:
        raise OptionError(f"PEFT, which goes by the end of a name, would take {wrong[0]!r} for one of {found}; {MERGE}")
    return taken


def _with_parents(names: Iterable[str]) -> set[str]:
    """Return the names, and those of all modules that they lie in, with the model itself, ''."""
    parts = [name.split(".") for name in names]
    return {""} | {".".join(part[:k]) for part in parts for k in range(1, len(part) + 1)}


def _write(folder: Path, config: Config, tensors: Tensors) -> None:
    aside = folder.with_name(folder.name + ".partial")
    kept = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    try:
        aside.mkdir(parents=True, exist_ok=True)
        save_file(kept, aside / WEIGHTS, metadata={"format": "pt"})
        (aside / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)  # never a configuration beside another's weights
        for name in (WEIGHTS, CONFIG):
            os.replace(aside / name, folder / name)
    except (OSError, SafetensorError) as error:
        raise WriteError(f"{folder}: cannot be written ({error}); look at the space and the rights there") from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(aside)


def load_peft(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapters of a PEFT folder into a plain model, as methods of ours, in place; the rest is frozen.

    LoRA, rsLoRA, DoRA, VeRA, HiRA and RandLoRA become the method of the same name. Where LoRA started from W₀ itself
    ("pissa" with the exact SVD, "olora"), the start is made again from the model's weights, as PEFT does, and the
    method is ``PiSSA``, W' = W₀ − s·B₀ A₀ + s·B A. The ``modules_to_save`` are put in and stay trainable.

    Arguments:
        model: The plain model that the adapters were trained on.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``. A pickle (``adapter_model.bin``) is not
            read.

    Returns:
        The model. After an error it is as it was.

    Raises:
        DataError: There is no such folder, or a file in it is damaged.
        OptionError: The folder uses a method or a feature that has no counterpart here.
        TargetError: The model lacks a layer that the folder has, or has adapters already.
        ShapeError: A tensor does not fit.

    Example: see ``save_peft``.
    """
    if adapted(model):
        raise TargetError(
            "the model has adapted layers already; load_peft takes the plain model (or merge(model) first)"
        )
    where = str(folder)
    config = _read_config(Path(folder))
    kind = config["peft_type"]
    states, shared, heads = _sorted_tensors(kind, _read_tensors(Path(folder)), where)
    if not states:
        raise DataError(f"{where}: {WEIGHTS} has no tensor of a {kind} adapter on a linear layer")

    plain: dict[str, nn.Module] = {}
    for name in states:
        plain[name] = find_module(model, name, where)
        if not is_adaptable(plain[name]):
            raise TargetError(f"{where}: {name!r} is a {type(plain[name]).__name__}; only linear layers can be read")
    _check_heads(model, heads, where)
    methods = {name: _method(kind, config, name, state, where) for name, state in states.items()}
    flat = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    for name, module in plain.items():
        methods[name].check_shape(*linear_shape(module), name)
    flat |= _parts(kind, methods, plain, shared, where)
    fitted = {}
    for name, module in plain.items():
        method, shape = methods[name], linear_shape(module)
        if isinstance(method, PiSSA):
            _add_start(flat, name, module, method, config["init_lora_weights"])
        fitted[name] = fitting_tensors(flat, name, method.shapes(*shape) | method.frozen_shapes(*shape), where)

    for name, module in plain.items():
        replace_module(model, name, layer_over(module, methods[name], torch.Generator(), state=fitted[name]))
    trained = _put_heads(model, heads, config.get("modules_to_save") or [])
    own = trained | {id(layer.tensor(k)) for layer in adapted(model).values() for k in layer._trainable}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)
    return model


def _read_config(folder: Path) -> Config:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder}: is no PEFT adapter folder, {CONFIG} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{folder / CONFIG}: is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise DataError(f"{folder / CONFIG}: holds no settings")
    if config.get("peft_type") not in NAMES:
        raise OptionError(
            f"{folder}: peft_type is {config.get('peft_type')!r}; {', '.join(NAMES)} can be read; else {UNLOAD}"
        )
    for key, value in config.items():
        if (value and key not in UNDERSTOOD) or (key == "bias" and value != "none"):
            raise OptionError(f"{folder}: {key} = {value!r} has no counterpart here; {UNLOAD}")
    start = config.setdefault("init_lora_weights", True)
    if start not in (*LEAVES_THE_BASE, "pissa", "olora"):
        raise OptionError(
            f"{folder}: init_lora_weights = {start!r} changed the base, and its start cannot be made again here; save "
            "it with PEFT's save_pretrained(folder, path_initial_model_for_weight_conversion=…): plain LoRA"
        )
    if config.get("use_dora") and start not in LEAVES_THE_BASE:
        raise OptionError(f"{folder}: use_dora with init_lora_weights = {start!r} has no counterpart here; {UNLOAD}")
    return config


def _read_tensors(folder: Path) -> Tensors:
    path = folder / WEIGHTS
    if not path.exists() and (folder / PICKLE).exists():
        raise DataError(
            f"{folder}: {PICKLE} is a pickle, which can run any code when it is read; if you trust it, load it with "
            f"PEFT and write {WEIGHTS} with model.save_pretrained(folder)"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a safetensors file ({error})") from None


def _sorted_tensors(kind: str, tensors: Tensors, where: str) -> tuple[dict[str, Tensors], Tensors, Tensors]:
    """Return the tensors of each adapted module, those that they share, and those of other modules."""
    states: dict[str, Tensors] = {}
    shared: Tensors = {}
    others: Tensors = {}
    for key, value in tensors.items():
        if key.removeprefix("base_model.") in SHARED.get(kind, ()):
            shared[key.removeprefix("base_model.")] = value
            continue
        if not key.startswith(PREFIX):
            raise DataError(
                f"{where}: the tensor {key!r} is none of a {kind} adapter; its name should begin with {PREFIX}"
            )
        name = key.removeprefix(PREFIX)
        module, own = next(
            ((name.removesuffix(f".{end}"), ours) for end, ours in NAMES[kind].items() if name.endswith(f".{end}")),
            (name, None),
        )
        if own is not None:
            states.setdefault(module, {})[own] = value.T if own == "randlora_lambda" else value
        elif name.rpartition(".")[2] not in SHARED.get(kind, ()):  # PEFT repeats RandLoRA's bases for every layer
            others[name] = value
    return states, shared, others


def _method(kind: str, config: Config, name: str, state: Tensors, where: str) -> Method:
    def option(key: str, default: Any, patterns: str = "") -> Any:
        for pattern, value in (config.get(patterns) or {}).items():  # PEFT's rule: the first that fits counts
            try:
                if re.match(rf"(.*\.)?({pattern})$", name):
                    return value
            except re.error as error:
                raise DataError(f"{where}: {pattern!r} in {patterns} is no expression ({error})") from None
        return config.get(key, default)

    dropout = option(f"{kind.lower()}_dropout", 0.0)
    if kind == "VERA":
        return VeRA(rank=option("r", 256), dropout=dropout)
    if kind == "HIRA":
        return HiRA(rank=_unpadded(state) or option("r", 32), dropout=dropout)
    if kind == "RANDLORA":
        return RandLoRA(rank=option("r", 32), alpha=option("randlora_alpha", 640), dropout=dropout)
    rank, alpha = option("r", 8, "rank_pattern"), option("lora_alpha", 8, "alpha_pattern")
    stabilized = bool(config.get("use_rslora"))
    if config.get("use_dora"):
        return DoRA(axis="row", rank=rank, alpha=alpha, dropout=dropout, rank_stabilized=stabilized)
    method = LoRA(rank=rank, alpha=alpha, dropout=dropout, rank_stabilized=stabilized)
    if config["init_lora_weights"] in LEAVES_THE_BASE:
        return method
    return PiSSA(rank=rank, alpha=method.scaling * rank, dropout=dropout)


def _unpadded(state: Tensors) -> int:
    """Drop the ranks of HiRA that are zero on both sides, which stay so in training; return how many are left."""
    A, B = state.get("hira_A"), state.get("hira_B")
    if A is None or B is None or A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
        return 0  # which the check of the shapes tells of
    alive = A.any(1) | B.any(0)
    state |= {"hira_A": A[alive], "hira_B": B[:, alive]}
    return int(alive.sum())


def _add_start(flat: Tensors, name: str, module: nn.Module, method: PiSSA, start: str) -> None:
    """Add what A and B were at the start, made from W₀ in the way that PEFT makes them."""
    W = base_weight(module).cpu()
    W = W.to(WIDENED.get(W.dtype, W.dtype))
    if start == "pissa":
        initial = method.initial(W, torch.Generator())
        flat |= {f"{name}.{key}": initial[key] for key in ("start_A", "start_B")}
    elif is_conv1d(module):
        raise OptionError(
            f"init_lora_weights = 'olora' on {name!r}, a Conv1D: PEFT itself mixes up its sides; {UNLOAD}"
        )
    else:
        Q, R = torch.linalg.qr(W)
        flat |= {f"{name}.start_A": R[: method.rank].clone(), f"{name}.start_B": Q[:, : method.rank].clone()}


def _parts(
    kind: str, methods: Mapping[str, Method], plain: Mapping[str, nn.Module], shared: Tensors, where: str
) -> Tensors:
    """Return what each layer uses of the shared A and B; layers use parts of the same memory."""
    if kind not in SHARED:
        return {}
    missing = [key for key in SHARED[kind] if key not in shared]
    if missing:
        raise DataError(
            f"{where}: {missing[0]} is not in the file (save_projection was false); load it with PEFT, set "
            "save_projection=True in its configuration, and save it again"
        )
    first = next(iter(plain.values()))
    weight = first.get_parameter("weight")
    dtype = compute_dtype(first) if is_quantized(first) else weight.dtype
    for key, value in shared.items():  # on the first layer's device and in its dtype; then nothing is copied again
        shared[key] = value.to(weight.device, WIDENED.get(dtype, dtype))
    parts: Tensors = {}
    ordered: dict[int, Tensor] = {}  # RandLoRA's bases in our order, by their number
    for name, module in plain.items():
        method, (rows, columns) = methods[name], linear_shape(module)
        if isinstance(method, VeRA):
            parts[f"{name}.vera_A"] = shared["vera_A"][:, :columns]
            parts[f"{name}.vera_B"] = shared["vera_B"][:rows]
        elif isinstance(method, RandLoRA):
            n, (smaller, larger) = method.bases(rows, columns), sorted((rows, columns))
            A, B = shared["randlora_A"], shared["randlora_B"]
            if A.ndim != 3 or B.ndim != 3 or B.shape[1] < n or len(A) != method.rank or B.shape[2] != method.rank:
                raise ShapeError(
                    f"{where}: randlora_A {tuple(A.shape)}, randlora_B {tuple(B.shape)} do not fit {name!r}"
                )
            if n not in ordered:
                ordered[n] = _reordered(B.flatten(1).T[: n * method.rank].contiguous(), method.rank, "theirs")
            parts[f"{name}.randlora_A"] = A[:, 0, :smaller]
            parts[f"{name}.randlora_B"] = ordered[n][:, :larger]
    return parts


def _check_heads(model: nn.Module, heads: Tensors, where: str) -> None:
    known = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name, value in heads.items():
        if name not in known:
            raise TargetError(
                f"{where}: the tensor {name!r} is neither of a linear layer's adapter nor of this model; the model "
                "must be that which PEFT had, head and all, and adapters of embeddings and convolutions cannot be read"
            )
        if known[name].shape != value.shape:
            raise ShapeError(
                f"{where}: {name} has shape {tuple(value.shape)}, the model's has {tuple(known[name].shape)}"
            )


@torch.no_grad()
def _put_heads(model: nn.Module, heads: Tensors, trained: Sequence[str]) -> set[int]:
    """Copy whole modules in; return the identities of the parameters that are to train."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    own = set()
    for name, value in heads.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        target: Tensor = getattr(module, leaf)
        if not names.get(id(target), set()) <= set(heads):  # tied to another module, which PEFT left as it was
            target = nn.Parameter(target.clone())
            setattr(module, leaf, target)
        target.copy_(value)
        if any(place.endswith(tuple(trained)) for place in _with_parents([owner])):
            own.add(id(target))
    return own

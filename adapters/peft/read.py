"""Read a folder of PEFT's into a plain model, as methods of ours; PEFT itself is not needed for it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapters.bitsandbytes import compute_dtype, is_quantized
from deltaw.adapters.checks import public
from deltaw.adapters.effective import base_weight
from deltaw.adapters.errors import DataError, DeltawError, OptionError, ShapeError, TargetError
from deltaw.adapters.injection import layer_over, put_in
from deltaw.adapters.layer import WIDENED
from deltaw.adapters.method import Method
from deltaw.adapters.methods.adalora import AdaLoRA
from deltaw.adapters.methods.delora import DeLoRA
from deltaw.adapters.methods.dora import DoRA
from deltaw.adapters.methods.hira import HiRA
from deltaw.adapters.methods.lora import LoRA
from deltaw.adapters.methods.oft import OFT
from deltaw.adapters.methods.pissa import PiSSA
from deltaw.adapters.methods.randlora import RandLoRA
from deltaw.adapters.methods.vera import VeRA
from deltaw.adapters.modules import adapted, find_module, is_adaptable, is_conv1d, linear_shape, replace_module
from deltaw.adapters.peft.folder import UNLOAD, read_config, read_tensors
from deltaw.adapters.peft.names import (
    BASE_LAYER,
    LEAVES_THE_BASE,
    MODULES_TO_SAVE,
    OUT_PROJ,
    PREFIX,
    ROOT,
    SHARED,
    TENSORS,
    WEIGHTS,
)
from deltaw.adapters.peft.targets import fits, with_parents
from deltaw.adapters.peft.write import reordered
from deltaw.adapters.state_file import fitting_tensors

Config = dict[str, Any]
Tensors = dict[str, Tensor]


@public
def load_peft(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapters of a PEFT folder into a plain model, as methods of ours, in place; the rest is frozen.

    LoRA, rsLoRA, DoRA, VeRA, HiRA, RandLoRA, DeLoRA, OFT and AdaLoRA become the method of the same name. Where LoRA
    started from W₀ itself ("pissa" with the exact SVD, "olora"), the start is made again from the model's weights, as
    PEFT does, and the method is ``PiSSA``, W' = W₀ − s·B₀ A₀ + s·B A. The ``modules_to_save`` are put in and stay
    trainable.

    Arguments:
        model: The plain model that the adapters were trained on.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``. A pickle (``adapter_model.bin``) is not
            read.

    Returns:
        The model. After an error it is as it was.

    Raises:
        DataError: There is no such folder, a file in it is damaged, or holds another W₀ of an adapted layer.
        NonFiniteError: A tensor holds NaN or infinity.
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
    try:
        read = _read(model, Path(folder), where)
    except DeltawError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        # Whatever a stranger's settings or tensors do that no check foresaw. Nothing is changed yet.
        reason = str(error).split("\n", 1)[0]
        raise DataError(f"{where}: is damaged or no adapter of PEFT ({type(error).__name__}: {reason:.200})") from None
    _put_in(model, read)
    return model


@dataclass(frozen=True)
class _Read:
    """All that goes into the model, checked against it.

    Arguments:
        methods: By the name of the module.
        states: The tensors of each.
        heads: Tensors of modules that were trained as a whole.
        trained: ``modules_to_save``.
    """

    methods: dict[str, Method]
    states: dict[str, Tensors]
    heads: Tensors
    trained: list[str]


def _read(model: nn.Module, folder: Path, where: str) -> _Read:
    """Read and check all of a folder; changes nothing."""
    config = read_config(folder)
    kind = config["peft_type"]
    states, shared, others = _sorted_tensors(kind, read_tensors(folder), where)
    if not states:
        raise DataError(f"{where}: {WEIGHTS} has no tensor of a {kind} adapter on a linear layer")
    plain: dict[str, nn.Module] = {}
    for name in states:
        if name.endswith(f".{BASE_LAYER}.{OUT_PROJ}"):
            raise TargetError(f"{where}: {name!r} is LoRA on an nn.MultiheadAttention; only linear layers can be read")
        plain[name] = find_module(model, name, where)
        if not is_adaptable(plain[name]):
            raise TargetError(f"{where}: {name!r} is a {type(plain[name]).__name__}; only linear layers can be read")
    heads = _heads(model, others, plain, where)
    methods = {name: _method(kind, config, name, state, where) for name, state in states.items()}
    flat = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    for name, module in plain.items():
        methods[name].check_shape(*linear_shape(module), name)
    flat |= _parts(kind, methods, plain, shared, where)
    for key, value in flat.items():
        if not value.is_floating_point():
            raise DataError(f"{where}: {key} is of {value.dtype}, which no adapter is")
    fitted = {}
    for name, module in plain.items():
        method, shape = methods[name], linear_shape(module)
        if isinstance(method, PiSSA):
            _add_start(flat, name, module, method, config["init_lora_weights"])
        fitted[name] = fitting_tensors(flat, name, method.shapes(*shape) | method.frozen_shapes(*shape), where)
    return _Read(methods, fitted, heads, config.get(MODULES_TO_SAVE) or [])


def _put_in(model: nn.Module, read: _Read) -> None:
    """Change the model; back as it was if something interrupts it."""
    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}
    plain = {name: model.get_submodule(name) for name in read.methods}
    try:
        layers = {
            name: layer_over(plain[name], method, torch.Generator(), state=read.states[name])
            for name, method in read.methods.items()
        }
        put_in(model, layers)
        trained = _put_heads(model, read.heads, read.trained)
    except BaseException:
        for name, module in plain.items():
            replace_module(model, name, module)
        for parameter, on in trains.items():
            parameter.requires_grad_(on)
        raise
    own = trained | {id(layer.tensor(k)) for layer in adapted(model).values() for k in layer._trainable}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)


def _sorted_tensors(kind: str, tensors: Tensors, where: str) -> tuple[dict[str, Tensors], Tensors, Tensors]:
    """Return the tensors of each adapted module, those that they share, and those of other modules."""
    states: dict[str, Tensors] = {}
    shared: Tensors = {}
    others: Tensors = {}
    for key, value in tensors.items():
        if key.removeprefix(ROOT) in SHARED.get(kind, ()):
            shared[key.removeprefix(ROOT)] = value
            continue
        if not key.startswith(PREFIX):
            raise DataError(
                f"{where}: the tensor {key!r} is none of a {kind} adapter; its name should begin with {PREFIX}"
            )
        name = key.removeprefix(PREFIX)
        module, own = next(
            ((name.removesuffix(f".{end}"), ours) for end, ours in TENSORS[kind].items() if name.endswith(f".{end}")),
            (name, None),
        )
        if own is not None:
            states.setdefault(module, {})[own] = value.T if own == "randlora_lambda" else value
        elif name.rpartition(".")[2] not in SHARED.get(kind, ()):  # PEFT repeats RandLoRA's bases for every layer
            others[name] = value
    return states, shared, others


def _method(kind: str, config: Config, name: str, state: Tensors, where: str) -> Method:
    def option(key: str, default: float, patterns: str = "") -> Any:
        value = config.get(key, default)
        for pattern, other in (config.get(patterns) or {}).items():  # PEFT's rule: the first that fits counts
            if fits(pattern, name, where, patterns, DataError):
                value = other
                break
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise DataError(f"{where}: {key} of {name!r} is {value!r:.60}, which is no number")
        return value

    dropout = option({"ADALORA": "lora", "DELORA": "module"}.get(kind, kind.lower()) + "_dropout", 0.0)
    if kind == "VERA":
        return VeRA(rank=option("r", 256), dropout=dropout)
    if kind == "HIRA":
        return HiRA(rank=_unpadded(state) or option("r", 32), dropout=dropout)
    if kind == "RANDLORA":
        return RandLoRA(rank=option("r", 32), alpha=option("randlora_alpha", 640), dropout=dropout)
    if kind == "DELORA":
        strength = option("delora_lambda", 15, "lambda_pattern")
        return DeLoRA(rank=option("r", 8, "rank_pattern"), alpha=strength, dropout=dropout, subtract_start=False)
    if kind == "OFT":
        return _oft(config, state, where)
    if kind == "ADALORA":
        # PEFT divides by the rank at the start, and by a little more, whatever was pruned and cut off since.
        rank, first = _with_a_triplet(state), option("init_r", 12) + 1e-5
        alpha = option("lora_alpha", 8)
        return AdaLoRA(rank=rank, alpha=(alpha if alpha > 0 else first) / first * rank, dropout=dropout)
    rank, alpha = option("r", 8, "rank_pattern"), option("lora_alpha", 8, "alpha_pattern")
    stabilized = bool(config.get("use_rslora"))
    if config.get("use_dora"):
        return DoRA(axis="row", rank=rank, alpha=alpha, dropout=dropout, rank_stabilized=stabilized)
    method = LoRA(rank=rank, alpha=alpha, dropout=dropout, rank_stabilized=stabilized)
    if config["init_lora_weights"] in LEAVES_THE_BASE:
        return method
    return PiSSA(rank=rank, alpha=method.scaling * rank, dropout=dropout)


def _oft(config: Config, state: Tensors, where: str) -> OFT:
    """OFT with blocks of the size that the tensor has."""
    stored = state.get("oft_R")
    size = (1 + math.isqrt(1 + 8 * stored.shape[1])) // 2 if stored is not None and stored.ndim == 2 else 0
    if size < 2:
        raise ShapeError(f"{where}: oft_R holds no rotations")
    series = config.get("use_cayley_neumann", True)
    version = re.match(r"(\d{1,6})\.(\d{1,6})", str(config.get("peft_version")))
    if "oft_block_size" not in config or (series and (version is None or tuple(map(int, version.groups())) < (0, 18))):
        raise OptionError(f"{where}: OFT had another formula before PEFT 0.18, which wrote this; {UNLOAD}")
    terms = config.get("num_cayley_neumann_terms", 5) if series else None
    return OFT(block_size=size, block_share=bool(config.get("block_share")), neumann_terms=terms)


def _with_a_triplet(state: Tensors) -> int:
    """Return the rank of AdaLoRA's tensors; where all triplets were pruned, put in one that is zero."""
    A, B, E = (state.get(name) for name in ("lora_A", "lora_B", "lora_E"))
    if A is None or B is None or E is None or A.ndim != 2 or B.ndim != 2:
        return 1  # which the check of the shapes tells of
    if not len(A):
        state |= {"lora_A": A.new_zeros(1, A.shape[1]), "lora_B": B.new_zeros(len(B), 1), "lora_E": E.new_zeros(1, 1)}
    return max(1, len(A))


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
                ordered[n] = reordered(B.flatten(1).T[: n * method.rank].contiguous(), method.rank, "theirs")
            parts[f"{name}.randlora_A"] = A[:, 0, :smaller]
            parts[f"{name}.randlora_B"] = ordered[n][:, :larger]
    return parts


def _heads(model: nn.Module, others: Tensors, plain: Mapping[str, nn.Module], where: str) -> Tensors:
    """Return the tensors of other modules in the model's dtypes, less copies of W₀.

    PEFT saves W₀ beside the adapter of an output layer. That of the model must be the same: it is never written over.
    """
    known = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    heads: Tensors = {}
    for name, value in others.items():
        owner, _, leaf = name.rpartition(".")
        module = owner.removesuffix(f".{BASE_LAYER}")
        if module in plain and leaf in ("weight", "bias"):
            own = known.get(f"{module}.{leaf}")
            if own is None or own.shape != value.shape or not torch.equal(own.to("cpu", value.dtype), value):
                raise DataError(
                    f"{where}: the tensor {name!r} is not the {leaf} that {module!r} has in this model; an adapter "
                    f"leaves it alone, so this is another base, or no file of PEFT ({UNLOAD})"
                )
            continue
        if name not in known:
            raise TargetError(
                f"{where}: the tensor {name!r} is neither of a linear layer's adapter nor of this model; the model "
                "must be that which PEFT had, head and all, and adapters of embeddings and convolutions cannot be read"
            )
        there = known[name]
        if there.shape != value.shape:
            raise ShapeError(f"{where}: {name} has shape {tuple(value.shape)}, the model's has {tuple(there.shape)}")
        if there.is_floating_point() != value.is_floating_point() or there.is_complex() != value.is_complex():
            raise DataError(f"{where}: {name} is of {value.dtype}, the model's of {there.dtype}")
        heads[name] = value.to(there.device, there.dtype)
    return heads


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
        if any(place.endswith(tuple(trained)) for place in with_parents([owner])):
            own.add(id(target))
    return own

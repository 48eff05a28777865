"""Write adapters as a folder that ``peft.PeftModel.from_pretrained`` loads; PEFT itself is not needed for it.

See PEFT's classes ``LoraConfig``, ``VeraConfig``, ``HiraConfig``, ``RandLoraConfig``, ``DeloraConfig``, ``OFTConfig``
and ``AdaLoraConfig``.
"""

import contextlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from deltaw.adapters.checks import public
from deltaw.adapters.errors import OptionError, TargetError, WriteError
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.linear.norms import constant_norms
from deltaw.adapters.method import Method, RankedMethod
from deltaw.adapters.methods.adalora import AdaLoRA
from deltaw.adapters.methods.delora import DeLoRA
from deltaw.adapters.methods.dora import DoRA
from deltaw.adapters.methods.hira import HiRA
from deltaw.adapters.methods.lora import LoRA
from deltaw.adapters.methods.lora_fa import FrozenDown
from deltaw.adapters.methods.oft import OFT
from deltaw.adapters.methods.randlora import RandLoRA
from deltaw.adapters.methods.vera import VeRA
from deltaw.adapters.modules import adapted
from deltaw.adapters.peft.names import CONFIG, PREFIX, ROOT, WEIGHTS
from deltaw.adapters.peft.targets import saved_whole, with_parents

MERGE = "call merge(model) and model.save_pretrained(folder) for a plain model instead"
CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)  # PEFT cannot wrap what has no forward

Config = dict[str, Any]
Tensors = dict[str, Tensor]


@public
def save_peft(model: nn.Module, folder: str | Path) -> None:
    """Write a model's adapters as a folder that ``peft.PeftModel.from_pretrained(base, folder)`` loads.

    What PEFT makes of it has the same forward in evaluation, up to rounding. The files appear whole or not at all.

    - LoRA, rsLoRA, DoRA by rows, VeRA, HiRA, RandLoRA, OFT, AdaLoRA, and DeLoRA whose B started at zero are written as
      such (an s that PEFT has not, into b or B).
    - LoRA+, LoRA-FA, AsyLoRA, OA: as LoRA, with their A and B.
    - Whatever else has factors ΔW = U V (PiSSA, CorDA, Delta-LoRA, SBoRA, DeLoRA less its start, …): as LoRA on W₀ with
      A = V, B = U and s = 1; of rank 2r for PiSSA, CorDA and DeLoRA.
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
        "inference_mode": True,
        "modules_to_save": heads or None,
        "target_modules": _target_modules(model, layers),
        "task_type": None,
    }
    if config["peft_type"] != "DELORA":  # which does not know it
        config["fan_in_fan_out"] = any(layer.transposed for layer in layers.values())
    for head in heads:
        state = model.get_submodule(head).state_dict()
        tensors |= {f"{PREFIX}{head}.{key}": value for key, value in state.items()}
    _write(Path(folder).resolve(), config, tensors)


def _kind(name: str, layer: AdaptedLayer) -> str:
    method = layer.method
    if isinstance(method, DoRA) and method.axis == "row":
        return "dora"
    if isinstance(method, DeLoRA):
        return "lora" if method.subtract_start or layer.transposed else "delora"
    if isinstance(method, OFT) and layer.transposed:
        raise OptionError(f"PEFT has no oft on a Conv1D, which module {name!r} is; {MERGE}")
    kinds: dict[str, type[Method]] = {"vera": VeRA, "hira": HiRA, "randlora": RandLoRA, "oft": OFT, "adalora": AdaLoRA}
    for kind, of in kinds.items():
        if isinstance(method, of):
            return kind
    if layer.factors() is not None:
        return "lora"
    raise OptionError(
        f"{method.name} (module {name!r}) has no counterpart in PEFT; what has one: lora, rslora, dora-row, vera, "
        "hira, randlora, oft, adalora, delora, and as plain LoRA lora+, lora-fa, asylora, oa, pissa, corda, "
        "delta-lora, sbora-fa, sbora-fb; " + MERGE
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
    r, rank_pattern = patterns_of(ranks)
    alpha, alpha_pattern = patterns_of(
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
        f"{ROOT}vera_A": _common([layer.tensor("vera_A") for layer in layers.values()], (rank, columns)),
        f"{ROOT}vera_B": _common([layer.tensor("vera_B") for layer in layers.values()], (rows, rank)),
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
    parts = [reordered(layer.tensor("randlora_B"), rank, "ours") for layer in layers.values()]
    B = _common(parts, (n * rank, larger))
    A = _common([layer.tensor("randlora_A") for layer in layers.values()], (rank, smaller))
    tensors = {
        f"{ROOT}randlora_A": A.view(rank, 1, smaller),
        f"{ROOT}randlora_B": B.T.reshape(larger, n, rank),
    }
    for name, layer in layers.items():
        tensors[f"{PREFIX}{name}.randlora_lambda"] = layer.tensor("randlora_lambda").T  # (r, n)
        tensors[f"{PREFIX}{name}.randlora_gamma"] = layer.tensor("randlora_gamma")
    alpha = scaling * rank
    config = {"peft_type": "RANDLORA", "r": rank, "randlora_alpha": int(alpha) if alpha == int(alpha) else alpha}
    return config | {"randlora_dropout": dropout, "save_projection": True}, tensors


def _write_delora(layers: Mapping[str, AdaptedLayer]) -> tuple[Config, Tensors]:
    """DeLoRA as PEFT has it, with nothing to subtract."""
    methods = {name: _ranked(layer) for name, layer in layers.items()}
    r, rank_pattern = patterns_of({name: method.rank for name, method in methods.items()})
    names = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
    tensors = {f"{PREFIX}{name}.{key}": layer.tensor(key) for name, layer in layers.items() for key in names}
    strength, lambda_pattern = patterns_of({name: method.rank * method.scaling for name, method in methods.items()})
    config = {"peft_type": "DELORA", "r": r, "rank_pattern": rank_pattern, "delora_lambda": strength}
    return config | {"lambda_pattern": lambda_pattern, "module_dropout": _one(methods, "dropout")}, tensors


def _write_oft(layers: Mapping[str, AdaptedLayer]) -> tuple[Config, Tensors]:
    """OFT, whose block size is the same for all layers in PEFT."""
    methods = {name: layer.method for name, layer in layers.items() if isinstance(layer.method, OFT)}
    sizes = {method.block(layers[name].in_features) for name, method in methods.items()}
    if len(sizes) > 1:
        raise OptionError(f"PEFT has one block size for all modules, but here there are {sorted(sizes)}; {MERGE}")
    terms, share = _one(methods, "neumann_terms"), _one(methods, "block_share")
    # The series is that of PEFT 0.18; without the number PEFT takes it for an older one.
    config = {"peft_type": "OFT", "peft_version": "0.18.0", "r": 0, "oft_block_size": sizes.pop(), "block_share": share}
    config |= {"use_cayley_neumann": terms is not None, "num_cayley_neumann_terms": 5 if terms is None else terms}
    return config, {f"{PREFIX}{name}.oft_R.weight": layer.tensor("oft_R") for name, layer in layers.items()}


def _write_adalora(layers: Mapping[str, AdaptedLayer]) -> tuple[Config, Tensors]:
    """AdaLoRA, with PEFT's s = α/(r + 1e-5); where there are several s, they go into Λ, and zeros fill lower ranks."""
    methods = {name: _ranked(layer) for name, layer in layers.items()}
    rank = max(method.rank for method in methods.values())
    scaling = next(iter(methods.values())).scaling
    tensors: Tensors = {}
    for name, layer in layers.items():
        spare, factor = rank - methods[name].rank, methods[name].scaling / scaling
        A, B, E = (layer.tensor(key) for key in ("lora_A", "lora_B", "lora_E"))
        tensors[f"{PREFIX}{name}.lora_A"] = F.pad(A, (0, 0, 0, spare))
        tensors[f"{PREFIX}{name}.lora_B"] = F.pad(B, (0, spare))
        tensors[f"{PREFIX}{name}.lora_E"] = F.pad(factor * E, (0, 0, 0, spare))
    config = {"peft_type": "ADALORA", "init_r": rank, "target_r": rank, "lora_alpha": scaling * (rank + 1e-5)}
    config["total_step"] = 1
    return config | {"lora_dropout": _one(methods, "dropout"), "init_lora_weights": True}, tensors


def reordered(B: Tensor, rank: int, order: str) -> Tensor:
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
    "delora": _write_delora,
    "oft": _write_oft,
    "adalora": _write_adalora,
}


def _ranked(layer: AdaptedLayer) -> RankedMethod:
    if not isinstance(layer.method, RankedMethod):
        raise OptionError(f"{layer.method.name} has no rank; {MERGE}")
    return layer.method


def _one(methods: Mapping[str, Method], option: str) -> Any:
    """Return the value that all modules have in common."""
    values = {getattr(method, option) for method in methods.values()}
    if len(values) > 1:
        raise OptionError(f"PEFT has one {option} for all modules, but here there are {sorted(values)}; {MERGE}")
    return values.pop()


def patterns_of(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    r"""Return the commonest value, and a pattern for every module that has another.

    PEFT matches a key as ``(.*\.)?(KEY)$`` at the beginning of a name; with ^ it fits the whole name and no other.
    """
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
    carrying = with_parents(layers)
    partly = carrying | with_parents(name.rpartition(".")[0] for name, p in parameters.items() if not p.requires_grad)
    found: list[str] = []
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        if not parameter.requires_grad or (owner in layers and leaf not in ("weight", "bias")):
            continue
        whole = [place for place in with_parents([owner]) - partly if not isinstance(modules[place], CONTAINERS)]
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
    wrong += [name for name in layers if saved_whole(name, found, "modules_to_save")]
    if wrong:
        raise OptionError(f"PEFT, which goes by the end of a name, would take {wrong[0]!r} for one of {found}; {MERGE}")
    return taken


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

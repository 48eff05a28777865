"""Advice as PEFT's settings, and the file that `deltaw resize` and `deltaw train` read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import DataError, OptionError
from deltaw.adapters.peft.write import patterns_of
from deltaw.adapters.small_files import bounded_json, small_file
from deltaw.analysis.records.storage.atomic import make_folder, write_text

FORMAT = 1  # of the file
LARGEST = 2**24  # bytes


@dataclass(frozen=True)
class Advised:
    """What an adapter of one module shall have.

    Arguments:
        rank: r.
        alpha: α, so that s = α/r, or α/√r of rsLoRA.
    """

    rank: int
    alpha: float


@public
def lora_config(advice: pd.DataFrame) -> dict[str, Any]:
    r"""Return the arguments of ``peft.LoraConfig`` that a table of advice stands for.

    ``r`` and ``lora_alpha`` are the commonest; ``rank_pattern`` and ``alpha_pattern`` name the modules that have
    others. Their keys begin with ^, so that each fits one whole name: PEFT matches a key at the end of a name
    otherwise, and "layer.1.query" would be that of "decoder.layer.1.query" too. ``target_modules`` are the full names;
    where one is the end of another, which PEFT would take for it, an expression that fits the whole name.

    Arguments:
        advice: As ``run.advice()`` returns it, of one run. A module with rank 0 gets no adapter.

    Returns:
        r, lora_alpha, rank_pattern, alpha_pattern, target_modules, use_rslora.

    Raises:
        OptionError: The table is of several runs, of none, or mixes the scales α/r and α/√r; all ranks are 0.

    Example:
        >>> table = pd.DataFrame({
        ...     "run": "lora", "module": ["0.query", "1.query", "2.query"], "rank": [4, 2, 4], "alpha": [8.0, 4.0, 8.0],
        ...     "stabilized": False,
        ... })
        >>> lora_config(table)["rank_pattern"], lora_config(table)["alpha_pattern"]
        ({'^1\\.query': 2}, {'^1\\.query': 4})
    """
    runs = list(dict.fromkeys(advice["run"]))
    if len(runs) != 1:
        raise OptionError(f"the advice is of {len(runs)} runs; PEFT's settings are those of one, pass its rows alone")
    adapted = advice[advice["rank"] > 0]
    if adapted.empty:
        raise OptionError(
            "no module is left to adapt: all ranks are 0; take a smaller share of the median, or drop none"
        )
    if adapted["stabilized"].nunique() > 1:
        raise OptionError("some modules were trained with α/√r and others with α/r, and PEFT has one for all")
    names = [str(name) for name in adapted["module"]]
    ranks = dict(zip(names, map(int, adapted["rank"]), strict=True))
    alphas = dict(zip(names, map(plain_number, adapted["alpha"]), strict=True))
    config = settings_of(ranks, alphas, known=[str(name) for name in advice["module"]])
    return config | {"use_rslora": bool(adapted["stabilized"].iloc[0])}


def settings_of(ranks: Mapping[str, int], alphas: Mapping[str, float], known: Sequence[str]) -> dict[str, Any]:
    """Return r, lora_alpha, their patterns and target_modules.

    Arguments:
        ranks, alphas: By the full name of each module that is adapted.
        known: Names of modules that there are.
    """
    r, rank_pattern = patterns_of(ranks)
    alpha, alpha_pattern = patterns_of({name: plain_number(value) for name, value in alphas.items()})
    return {
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": target_modules(list(ranks), known),
    }


def target_modules(names: Sequence[str], known: Sequence[str]) -> list[str] | str:
    """Return the names, or an expression where PEFT, which looks at a name's end, would take others for them."""
    wanted = set(names)
    for name in known:
        parts = name.split(".")
        if name not in wanted and any(".".join(parts[k:]) in wanted for k in range(1, len(parts))):
            return "|".join(re.escape(name) for name in names)
    return list(names)


@public
def write_advice(advice: pd.DataFrame, path: str | Path) -> dict[str, Any]:
    """Write advice of one run as JSON, whole or not at all, and return what was written.

    ``lora_config`` holds what ``peft.LoraConfig`` takes; ``modules`` the rank and alpha of each module by its name;
    ``hardly_moved`` and ``dropped`` the names of those modules; ``rule`` the rule in words.

    Raises:
        OptionError: As `lora_config`.
        WriteError: It cannot be written.
    """
    said = {
        "deltaw_advice": FORMAT,
        "run": str(advice["run"].iloc[0]),
        "step": int(advice["step"].iloc[0]),
        "rule": str(advice.attrs.get("rule", "")),
        "parameters": int(advice["parameters"].sum()),
        "lora_config": lora_config(advice),
        "modules": {
            str(name): {"rank": int(rank), "alpha": plain_number(alpha)}
            for name, rank, alpha in zip(advice["module"], advice["rank"], advice["alpha"], strict=True)
            if rank > 0
        },
        "hardly_moved": [str(name) for name in advice["module"][advice["hardly"]]],
        "dropped": [str(name) for name in advice["module"][advice["rank"] == 0]],
    }
    make_folder(Path(path).parent)
    write_text(path, json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    return said


def read_advice(path: str | Path) -> dict[str, Advised]:
    """Return rank and alpha by module from a file of `write_advice`.

    Raises:
        DataError: It is no such file.
    """
    try:
        found = bounded_json(small_file(Path(path), LARGEST))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or 'no regular file'})") from None
    except ValueError as error:
        raise DataError(f"{path}: is no advice ({error}); write one with deltaw advise RUN --advice FILE") from None
    modules = found.get("modules") if isinstance(found, dict) and found.get("deltaw_advice") == FORMAT else None
    if not isinstance(modules, dict) or not modules:
        raise DataError(f"{path}: is no advice of this version; write one with deltaw advise RUN --advice FILE")
    return {name: _advised(name, entry, path) for name, entry in modules.items()}


def _advised(name: str, entry: Any, path: str | Path) -> Advised:
    rank, alpha = (entry.get("rank"), entry.get("alpha")) if isinstance(entry, dict) else (None, None)
    try:
        rank = whole_number("rank", rank, 1)
    except OptionError:
        raise DataError(f"{path}: the rank of {name:.100} is {rank!r:.40}, no whole number of at least 1") from None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise DataError(f"{path}: the alpha of {name:.100} is {alpha!r:.40}, no number above 0")
    return Advised(rank, float(alpha))


def plain_number(value: float) -> float | int:
    """An int where it is whole, as PEFT's settings are written."""
    return int(value) if value == int(value) else float(value)

"""A new folder of PEFT's: its tensors and settings, written whole or not at all, and never over another."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save_file
from torch import Tensor

from deltaw.adapters.errors import OptionError, WriteError
from deltaw.adapters.peft.names import CONFIG, LEAVES_THE_BASE, PREFIX, WEIGHTS
from deltaw.analysis.advice.config import plain_number, settings_of
from deltaw.analysis.records.foreign.base import BaseLike
from deltaw.analysis.records.foreign.peft import Adapters
from deltaw.analysis.records.storage.atomic import PARTIAL, disk_errors, make_folder, sync_folder
from deltaw.analysis.tables.low_rank_part import OTHER_PRODUCTS
from deltaw.analysis.trajectory import Trajectory

REPORT, FORMAT = "deltaw_resize.json", 1
PAIR = {"lora_A", "lora_B"}
# Settings of an old folder that belong to how its adapter was started or trained, and to none that is written anew.
STARTS = ("eva_config", "corda_config", "loftq_config", "lora_ga_config", "runtime_config", *OTHER_PRODUCTS)


class NewFolder:
    """The content of the new folder.

    Arguments:
        run: What is resized.
        step: Of which step.
        base: What was given as W₀; its name goes into the settings of a new adapter.
    """

    def __init__(self, run: Trajectory, step: int, base: BaseLike = None) -> None:
        self.run, self.step = run, step
        self._base = str(base) if isinstance(base, str | Path) else None
        self._tensors: dict[str, Tensor] = {}
        self._ranks: dict[str, int] = {}
        self._alphas: dict[str, float] = {}
        self._stabilized: set[bool] = set()
        self._dora: set[bool] = set()
        source = run.source
        self._file = source.file(step) if isinstance(source, Adapters) else None
        self._settings: dict[str, Any] = dict(source.info["peft"]) if isinstance(source, Adapters) else {}
        if self._file is not None and self._file.adapter is not None:
            raise OptionError(
                f"{source.where}: holds the state of a whole PeftModel; save its adapter with save_pretrained, and "
                "resize that"
            )
        self._lora = self._settings.get("peft_type") == "LORA"

    @property
    def keeps_others(self) -> bool:
        """Whether what is not resized stays in the new folder; else it has no adapter there."""
        return self._file is not None

    def resizable(self, module: str) -> bool:
        """Return whether a module has an adapter that can be written at another rank, or gets one."""
        if self._file is None:  # another tool's convolution has tensors of four sides, and PEFT's adapter of it too
            return all(value.ndim <= 2 for value in self.run.state(module, self.step).values())
        if self.run.source.kernel(module):
            return False
        if not self.run.source.rebuilt(module) or module in self._file.attention:
            return False
        return not self._lora or set(self._file.modules.get(module, ())) >= PAIR

    def kept(self, resized: list[str]) -> list[str]:
        """Return the names of the old folder's adapters that stay as they are."""
        return [] if self._file is None else [name for name in self._file.modules if name not in set(resized)]

    def put(
        self, module: str, B: Tensor, A: Tensor, alpha: float, magnitude: Tensor | None, *, stabilized: bool
    ) -> None:
        """Take what a module's adapter is from now on."""
        self._ranks[module], self._alphas[module] = len(A), alpha
        self._stabilized.add(stabilized)
        self._dora.add(magnitude is not None)
        before = f"{PREFIX}{module}."
        self._tensors |= {f"{before}lora_A.weight": A, f"{before}lora_B.weight": B}
        if magnitude is not None:
            self._tensors[f"{before}lora_magnitude_vector"] = magnitude.detach().reshape(-1)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors: what was put, and what goes along."""
        found = dict(self._tensors)
        if self._file is not None:
            for name in self._beside():
                found[name] = self._file.tensors.read(name)
        return {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}

    def _beside(self) -> list[str]:
        """The tensors of the old file that go along."""
        if self._file is None:
            return []
        of_adapters = {name: module for module, names in self._file.modules.items() for name in names.values()}
        names = self._file.tensors.names()
        if not self._lora:  # of another type's file only what was trained as a whole
            whole = tuple(f"{PREFIX}{module}." for module in self._file.whole)
            return [name for name in names if name not in of_adapters and whole and name.startswith(whole)]
        return [name for name in names if of_adapters.get(name) not in self._ranks]

    def settings(self) -> dict[str, Any]:
        """Return ``adapter_config.json``.

        Raises:
            OptionError: One folder of PEFT's cannot hold them all.
        """
        if len(self._stabilized) > 1 or len(self._dora) > 1:
            raise OptionError(
                f"{self.run.source.where}: PEFT has one use_rslora and one use_dora for all modules, and here they "
                "differ; resize them apart, by modules"
            )
        known = list(self.run.modules)
        config = settings_of(self._ranks, self._alphas, known)
        shared = {"use_rslora": True in self._stabilized, "use_dora": True in self._dora, "peft_type": "LORA"}
        shared |= {"init_lora_weights": True, "inference_mode": True}
        if not self._lora:
            old = {key: self._settings.get(key) for key in ("base_model_name_or_path", "modules_to_save", "task_type")}
            if self._base is not None:
                old["base_model_name_or_path"] = self._base
            return config | shared | old | {"lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False}
        rest = self.kept(list(self._ranks))
        self._check_rest(rest)
        if rest:  # what stays keeps its own settings: those of the old folder come after the new ones, which are exact
            del config["r"], config["lora_alpha"]
            for key, of in (("rank_pattern", self._ranks), ("alpha_pattern", self._alphas)):
                exact = {f"^{re.escape(name)}": plain_number(value) for name, value in of.items()}
                old = {
                    pattern: value for pattern, value in (self._settings.get(key) or {}).items() if pattern not in exact
                }
                config[key] = exact | old
        del config["target_modules"]
        return {key: value for key, value in self._settings.items() if key not in STARTS} | config | shared

    def _check_rest(self, rest: list[str]) -> None:
        """Raise where what stays as it is would be read otherwise beside what is resized."""
        other = [key for key in OTHER_PRODUCTS if self._settings.get(key)]
        start = self._settings.get("init_lora_weights", True)
        if start not in LEAVES_THE_BASE:
            other.append(f"init_lora_weights = {start!r:.40}")
        if bool(self._settings.get("use_dora")) != (True in self._dora):
            other.append("use_dora")
        if rest and other:
            raise OptionError(
                f"{self.run.source.where}: {rest[0]} would stay as it is, with {other[0]}, which what is resized has "
                "no longer, and PEFT has one of it for all modules; resize all modules"
            )


def check_new(out: Path) -> None:
    """Raise where a folder holds something already, or is none.

    Raises:
        WriteError: It does.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise WriteError(f"{out}: is there and no folder; choose another name")
    if out.exists() and any(out.iterdir()):
        raise WriteError(f"{out}: holds something already, and nothing is written over; choose another name")


def write_new(out: Path, new: NewFolder, frame: pd.DataFrame) -> None:
    """Write the folder beside its place, flush it, and rename it.

    Raises:
        WriteError: It cannot be written, or something came there meanwhile.
    """
    config, tensors = new.settings(), new.tensors()
    out = out.absolute()
    check_new(out)
    make_folder(out.parent)
    aside = out.with_name(f"{out.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with disk_errors(out):
            aside.mkdir()
            save_file(tensors, aside / WEIGHTS, metadata={"format": "pt"})
            (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            (aside / REPORT).write_text(json.dumps(report(new, frame), indent=1) + "\n", encoding="utf-8")
            for name in (WEIGHTS, CONFIG, REPORT):
                with open(aside / name, "rb+") as file:
                    os.fsync(file.fileno())
            os.chmod(aside / WEIGHTS, (aside / CONFIG).stat().st_mode)  # safetensors makes its files private
            sync_folder(aside)
            os.rename(aside, out)  # onto an empty folder at most; a full one is an error
            sync_folder(out.parent)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(aside)


def report(new: NewFolder, frame: pd.DataFrame) -> dict[str, Any]:
    """Return what the folder's own file says of it: the error of every matrix, and of all together."""
    columns = ["frobenius", "cut_frobenius", "error_frobenius"]
    whole, cut, error = (frame[name].to_numpy(float) for name in columns)
    total = math.sqrt(float((whole**2).sum())) or 1.0
    records: list[dict[Any, Any]] = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    return {
        "deltaw_resize": FORMAT,
        "source": new.run.name,
        "step": new.step,
        "all": {
            "parameters": int((frame["rank"] * (frame["rows"] + frame["columns"])).sum()),
            "cut_frobenius": math.sqrt(float(((whole * cut) ** 2).sum())) / total,
            "error_frobenius": math.sqrt(float(((whole * error) ** 2).sum())) / total,
        },
        "kept": list(frame.attrs.get("kept", [])),
        "modules": [{str(name): _json(value) for name, value in row.items()} for row in records],
    }


def _json(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value

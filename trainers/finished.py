"""Runs that were finished, and what an unfinished one goes on from."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.run_folder.format import BASE, CHECKPOINTS, MANIFEST, read_manifest
from deltaw.analysis.records.run_folder.lock import LOCK
from deltaw.analysis.records.run_folder.results import RESULT, read_result, write_result
from deltaw.analysis.records.run_folder.seal import SEAL
from deltaw.trainers.settings import Settings

R = TypeVar("R")
TRAINING = "training"  # the folder with the Trainer's states, in the run's
OWN = (TRAINING, BASE, CHECKPOINTS, SEAL, LOCK)  # what a run has before its manifest


def finish(settings: Settings, out: Path, result: Any, dev: Mapping[str, str] | None = None) -> None:
    """Keep the result in the run folder, and drop the states to go on from.

    Arguments:
        dev: Labels and predictions of the development set, for the error of a score.
    """
    write_result(out, settings.plain(), asdict(result), dev)
    shutil.rmtree(out / TRAINING, ignore_errors=True)


def finished(settings: Settings, out: Path, kind: Callable[..., R]) -> R | None:
    """Return the result of a finished run with these settings; None where there is work to do.

    Arguments:
        kind: The result's class.

    Raises:
        RecordError: The folder holds something else.
    """
    wanted = settings.plain()
    kept = read_result(out)
    if kept is not None:
        values = {"rank": kept.options.get("rank")} | kept.values
        if values.get("seconds_per_epoch", 0.0) is None:
            values["seconds_per_epoch"] = math.nan  # every epoch was trained before the run went on
        try:
            result = kind(**values)
        except TypeError as error:
            raise RecordError(f"{out / RESULT}: is damaged ({error})") from None
        _same_settings(out, kept.settings, wanted)
        return result
    if (out / MANIFEST).is_file():
        _same_settings(out, read_manifest(out).info.get("settings", {}), wanted)
    elif out.exists():
        foreign = sorted(path.name for path in out.iterdir() if path.name not in OWN)
        if foreign:
            raise RecordError(f"{out}: holds {foreign[0]!r} and is no run; choose another folder, or a new one")
    return None


def _same_settings(out: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in dict.fromkeys([*wanted, *there]):
        value = wanted.get(name)
        if there.get(name) != value:
            raise RecordError(
                f"{out}: holds another run ({name} is {there.get(name)!r}, not {value!r}); choose another folder"
            )


def last_state(folder: Path) -> tuple[int, str] | None:
    """Return step and folder of the newest state of the Trainer that is whole: its own description is written last."""
    states: list[tuple[int, str]] = []
    for path in folder.glob("checkpoint-*"):
        try:
            step = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        states.append((step, str(path)))
    return max(states) if states else None

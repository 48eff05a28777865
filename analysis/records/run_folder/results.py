"""``result.json``: what an experiment came to, beside the manifest of the run it belongs to.

    {"settings": {"method": "bora", "options": {"rank": 8}, …}, "result": {"method": "bora", "best_mcc": 0.6, …},
     "dev": {"labels": "0110…", "predictions": "0100…"}}

JSON has no NaN: a number that was not measured is null. ``dev`` has the labels of the development set and what was
predicted, a digit an example, where the score is one of zeros and ones: with them two runs are compared example by
example. Earlier versions did not keep it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltaw.adapters.errors import RecordError
from deltaw.adapters.small_files import bounded_json
from deltaw.analysis.records.storage.atomic import write_text
from deltaw.analysis.records.storage.files import LocalStorage

RESULT = "result.json"
LIMIT = 10_000_000  # bytes; a result of a thousand epochs has 200,000
DEPTH = 20  # of nesting
NUMBERS = (
    "trainable", "share", "best_mcc", "final_mcc", "best_epoch", "mean", "seconds_per_epoch", "peak_megabytes",
    "learning_rate", "epochs", "seed", "rank", "direction_rank",
)  # fmt: skip
TEXTS = ("method", "out", "device")
BY_TASK = ("scores", "prior")  # a number for each task
ANSWERS = ("labels", "predictions")
UNMEASURED = "seconds_per_epoch"  # NaN in results of earlier versions where no epoch was left to train


@dataclass(frozen=True)
class Result:
    """The content of a file.

    Arguments:
        settings: The settings of the experiment, as plain values.
        values: What it came to: numbers, and texts, by the names of the experiment's result.
        dev: "labels" and "predictions" of the development set, zeros and ones; empty where they were not kept.
    """

    settings: dict[str, Any]
    values: dict[str, Any]
    dev: dict[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method."""
        found: dict[str, Any] = self.settings.get("options", {})
        return found


def has_result(folder: Path) -> bool:
    """Return whether a run has one."""
    return (folder / RESULT).is_file()


def read_result(folder: Path) -> Result | None:
    """Return the result of a run, ``None`` where it has none.

    Raises:
        RecordError: The file is damaged: it is too large or too deep, no JSON, holds NaN or infinity, or a value of
            another type than it should be; names the file and the value.
    """
    storage = LocalStorage(folder)
    where = storage.file(RESULT)
    if not storage.has(RESULT):
        return None
    size = storage.size(RESULT)
    if size > LIMIT:
        raise RecordError(f"{where}: is damaged, it has {size} bytes; a result has at most {LIMIT}")
    try:
        return _checked(bounded_json(storage.read(RESULT, 0, size, size), unique=True))
    except RecordError:
        raise
    except ValueError as error:
        raise RecordError(f"{where}: is damaged ({str(error)[:200]})") from None


def write_result(
    folder: Path, settings: Mapping[str, Any], values: Mapping[str, Any], dev: Mapping[str, str] | None = None
) -> None:
    """Write the result of a run; a number that is not finite becomes null.

    Raises:
        WriteError: The disk is full or cannot be written to.
    """
    plain = {"settings": _without_nan(settings), "result": _without_nan(values)} | ({"dev": dict(dev)} if dev else {})
    write_text(folder / RESULT, json.dumps(plain, indent=1, allow_nan=False))


def _checked(raw: Any) -> Result:
    _plain(raw, DEPTH, "")
    if not isinstance(raw, dict):
        raise ValueError("it holds no mapping")
    settings, values = raw.get("settings"), raw.get("result")
    if not isinstance(settings, dict) or not isinstance(values, dict):
        raise ValueError("settings and result must be mappings")
    if not isinstance(settings.get("options", {}), dict):
        raise ValueError("settings.options must be a mapping")
    for name in TEXTS:
        if not isinstance(values.get(name, ""), str):
            raise ValueError(f"{name} is {values[name]!r:.40}, it should be a text")
    for name in NUMBERS:
        if name in values and not _is_number(values[name]):
            raise ValueError(f"{name} is {values[name]!r:.40}, it should be a number")
    for name in BY_TASK:
        if name in values and not _are_numbers(values[name]):
            raise ValueError(f"{name} is {values[name]!r:.40}, it should be numbers by task")
    if "n_dev" in values and not (_is_number(values["n_dev"]) or _are_numbers(values["n_dev"])):
        raise ValueError(f"n_dev is {values['n_dev']!r:.40}, it should be a number, or numbers by task")
    return Result(settings, values, _answers(raw.get("dev", {})))


def _answers(dev: Any) -> dict[str, str]:
    """Labels and predictions, as many zeros and ones."""
    if dev == {}:
        return {}
    texts = [dev.get(name) if isinstance(dev, dict) else None for name in ANSWERS]
    found = [text for text in texts if isinstance(text, str) and set(text) <= {"0", "1"}]
    if len(found) < len(ANSWERS) or len({len(text) for text in found}) > 1:
        raise ValueError("dev must have labels and predictions, as many zeros and ones")
    return dict(zip(ANSWERS, found, strict=True))


def _plain(raw: Any, depth: int, name: str) -> None:
    """Raise where values are nested deeper than so much, or a number is none."""
    if depth == 0:
        raise ValueError(f"it is nested more than {DEPTH} deep")
    if isinstance(raw, dict):
        for key, value in raw.items():
            _plain(value, depth - 1, key)
    elif isinstance(raw, list):
        for value in raw:
            _plain(value, depth - 1, name)
    elif isinstance(raw, float) and not math.isfinite(raw) and not (math.isnan(raw) and name == UNMEASURED):
        raise ValueError(f"{name:.40} is {raw}, which is no number")
    elif isinstance(raw, int) and abs(raw) >= 2**63:
        raise ValueError(f"{name:.40} is too large a number")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(one) for one in value.values())


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

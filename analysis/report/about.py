"""What a run is, for the top of a report: plain values that say it in a few words, and what is wrong with it."""

import math
import re
from collections.abc import Sequence
from typing import Any

from deltaw.analysis.inspection.inspect import inspect_run
from deltaw.analysis.printable import printable
from deltaw.analysis.records.run_folder.results import Result, read_result
from deltaw.analysis.records.storage.files import is_address
from deltaw.analysis.report.parts import Notes, short
from deltaw.analysis.tables.tidy import display_name
from deltaw.analysis.trajectory import Trajectory

PART = "runs"
_MODEL = ("_name_or_path", "name_or_path", "model_type")  # of a model's config.json, the first that says something
# Of an adapter's configuration, under deltaw's names.
_PEFT = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_dora": "dora", "use_rslora": "rslora"}
_SHOWN = ("experiment", "data", "epochs", "batch_size", "learning_rate", "seed")  # of a run's settings


def about(run: Trajectory, modules: Sequence[str], notes: Notes, *, check: bool, progress: bool) -> dict[str, Any]:
    """Return what the run is: see ``deltaw.inspect_run`` for its findings.

    Arguments:
        run: The run.
        modules: Those that are shown.
        notes: What could not be found out.
        check: Look for what is wrong with the run, which reads weights.
        progress: Show progress bars.
    """
    source = run.source
    result: Result | None = None
    found: dict[str, Any] = {
        "name": printable(run.name),
        "method": run.method,
        "title": display_name(run.method),
        "format": source.format,
        "steps": list(run.steps),
        "steps_known": source.steps_known,
        "base": None if run.base_from is None else printable(short(run.base_from)),
        "modules": len(modules),
    }
    with notes.part(PART, f"{run.name}: "):
        if not is_address(source.where):
            result = read_result(run.path)
    with notes.part(PART, f"{run.name}: "):
        sound = inspect_run(run, check=check, progress=progress)
        found["options"] = _options(sound.get("options", {}), source.info)
        found["created"] = sound.get("created")
        found["findings"] = [
            {key: printable(value) if isinstance(value, str) else value for key, value in finding.items()}
            for finding in sound.get("findings", [])
        ]
        found["survives"] = _survives(sound.get("precision", []))
    settings = _settings(run, result)
    found["model"] = _model(run, settings)
    found["settings"] = {name: _plain(settings[name]) for name in _SHOWN if settings.get(name) not in (None, {}, [])}
    with notes.part(PART, f"{run.name}: "):
        found["trainable"] = _trainable(run, modules, result)
    found["scores"] = _scores(result)
    return found


def _options(of_methods: dict[str, dict[str, Any]], info: dict[str, Any]) -> dict[str, Any]:
    """The options of the run's methods, or what an adapter's configuration says in their place."""
    found: dict[str, Any] = {}
    for options in of_methods.values():
        found |= options
    settings = info.get("peft")
    if not found and isinstance(settings, dict):
        found = {shown: settings[name] for name, shown in _PEFT.items() if settings.get(name) not in (None, False)}
    return {printable(str(name)): _plain(value) for name, value in found.items() if value is not None}


def _settings(run: Trajectory, result: Result | None) -> dict[str, Any]:
    kept = run.info.get("settings")
    return (kept if isinstance(kept, dict) else {}) | (result.settings if result is not None else {})


def _model(run: Trajectory, settings: dict[str, Any]) -> str | None:
    """The model's name, from whatever names it; of a folder the last part."""
    peft = run.info.get("peft")
    named = [settings.get("model"), peft.get("base_model_name_or_path") if isinstance(peft, dict) else None]
    named += [run.source.config.get(name) for name in _MODEL]
    name = next((value for value in named if isinstance(value, str) and value), None)
    return None if name is None else printable(short(name))


def base_named(run: Trajectory) -> str | None:
    """Return the base model as the run itself names it, where that is a name that anybody can give; no folder."""
    peft = run.info.get("peft")
    named = [peft.get("base_model_name_or_path") if isinstance(peft, dict) else None]
    named += [run.source.config.get(name) for name in ("_name_or_path", "name_or_path")]
    name = next((value for value in named if isinstance(value, str) and value), "")
    return printable(name) if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else None


def _trainable(run: Trajectory, modules: Sequence[str], result: Result | None) -> int | None:
    """How many parameters were trained: what the run says, or what is recorded of the modules that are shown."""
    if result is not None and isinstance(result.values.get("trainable"), int):
        return int(result.values["trainable"])
    count = 0
    for name in modules:
        method = run.method_of(name)
        if method is not None and run.source.rebuilt(name):
            count += sum(math.prod(shape) for shape in method.shapes(*run.shape(name)).values())
        elif run.source.rebuilt(name) and run.steps:
            count += sum(tensor.numel() for tensor in run.state(name, run.steps[-1]).values())
        else:
            count += math.prod(run.shape(name))
    return count


def _scores(result: Result | None) -> dict[str, float]:
    if result is None:
        return {}
    given = result.values.get("scores")
    scores = dict(given) if isinstance(given, dict) else {}
    if "best_mcc" in result.values:
        scores["mcc"] = result.values["best_mcc"]
    return {printable(str(name)): float(value) for name, value in scores.items() if isinstance(value, int | float)}


def _survives(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of the last update, merged into a dtype: the share of entries that change and the error, over all modules."""
    found: dict[str, dict[str, float]] = {}
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        of_dtype = [row for row in rows if row["dtype"] == dtype]
        found[dtype] = {name: sum(row[name] for row in of_dtype) / len(of_dtype) for name in ("entries", "error")}
    return {dtype: values for dtype, values in found.items() if all(map(math.isfinite, values.values()))}


def _plain(value: Any) -> Any:
    """A value for JSON: numbers, truths and None as they are, everything else as a text that can be shown."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return printable(str(value))

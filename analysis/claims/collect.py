"""Reading recorded runs into the tables that claims are held against."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.analysis.claims.dora import GRANULAR
from deltaw.analysis.claims.evidence import (
    CHANGES,
    DISTANCES,
    GEOMETRY,
    INTRUDERS,
    REGIONS,
    RUNS,
    SCORES,
    SPECTRA,
    Evidence,
)
from deltaw.analysis.claims.found import find_pack
from deltaw.analysis.claims.plan import Plan
from deltaw.analysis.claims.scores import guessing
from deltaw.analysis.records.run_folder.results import read_result
from deltaw.analysis.tables.regions import regions_table
from deltaw.analysis.tables.work import HERE, Work
from deltaw.analysis.trajectory import Trajectory

if TYPE_CHECKING:
    from deltaw.analysis.claims.pack import Pack

# Options that make another method of one, for a claim that compares them; the value is the method's own.
VARIANTS: dict[str, Any] = {"detach_norm": True, "activation": "relu", "sign": "ste"}
SAME = ("experiment", "model", "data", "corpus", "vision")  # what runs that are compared must share, where they say so


def gather(
    runs: Sequence[Trajectory],
    papers: "Iterable[str | Pack]",
    *,
    on_gpu: bool = False,
    roles: Mapping[str, str] | None = None,
    progress: bool = False,
    work: Work = HERE,
) -> Evidence:
    """Measure in recorded runs what the claims of some packs are about.

    Results are read from a run's result.json where it has one.

    Arguments:
        runs: Opened runs; several of a method are told apart by rank, and else averaged.
        papers: Packs, or names or paths of them; only what their claims want is measured.
        on_gpu: Whether memory was measured on a GPU, where a run's result does not say.
        roles: By a run's name, what it counts as in place of its method: a pack may compare runs of which the method
            says too little, as "rl" and "sft".
        progress: Show progress bars.
        work: Where and how it is measured.

    Raises:
        OptionError: The runs are of different experiments, or there is none; a role is of a run that is not there.
        RecordError: A run or its result is damaged, or a run has no checkpoint.
        PackError: A pack cannot be read.
    """
    if not runs:
        raise OptionError("no run is given; name one or more run folders")
    for run in runs:
        if not run.steps:
            raise RecordError(f"{run.path}: no checkpoint was recorded; train on, or leave this run out")
    for name in roles or {}:
        if name not in {run.name for run in runs}:
            raise OptionError(f"a role is given to {name!r}; there are {', '.join(run.name for run in runs)}")
    wanted = [find_pack(pack) for pack in papers]
    results = [_result(run) for run in runs]
    _require_one_experiment(runs, results)
    entries = [_entry(run, result, on_gpu) for run, result in zip(runs, results, strict=True)]
    for run, entry in zip(runs, entries, strict=True):
        entry["method"] = (roles or {}).get(run.name, entry["method"])
    scores = pd.DataFrame(
        [row for entry, result in zip(entries, results, strict=True) for row in _scores(entry, result)],
        columns=list(SCORES),
    ).astype({"rank": "Int64", "direction_rank": "Int64"})
    weak = guessing(scores)
    plan = Plan(runs, [entry["method"] for entry in entries], wanted, progress, work)

    def collect(name: str, make: Callable[[Trajectory], pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
        tables = []
        for run, entry in zip(runs, entries, strict=True):
            if run in plan.runs_of(name):
                ranks = {"adapter_rank": entry["rank"], "direction_rank": entry["direction_rank"]}
                # Which entries move follows from the method, whether it has learned or not.
                reason = {} if name == "regions" else {"guessing": weak.get(entry["run"])}
                tables.append(make(run).assign(method=entry["method"], **reason, **ranks))
        if not tables:
            return pd.DataFrame(columns=[*columns, "adapter_rank", "direction_rank"])
        whole = pd.concat(tables, ignore_index=True)
        return whole.astype({"adapter_rank": "Int64", "direction_rank": "Int64"})

    return Evidence(
        runs=pd.DataFrame(entries, columns=list(RUNS)).astype({"rank": "Int64", "direction_rank": "Int64"}),
        scores=scores,
        consecutive=collect("consecutive", lambda run: plan.changes(run)["consecutive"], CHANGES),
        initial=collect("initial", lambda run: plan.changes(run)["initial"], CHANGES),
        base=collect("base", lambda run: plan.changes(run)["base"], CHANGES),
        spectra=collect("spectra", plan.spectra, SPECTRA),
        regions=collect("regions", regions, REGIONS),
        geometry=collect("geometry", plan.geometry, GEOMETRY),
        intruders=collect("intruders", plan.intruders, INTRUDERS),
        distances=collect("distances", plan.distances, DISTANCES),
        kind=plan.kind,
    )


def regions(run: Trajectory) -> pd.DataFrame:
    """Return how much of ΔW at the last step is not zero, one row a matrix; see `regions_table`."""
    return regions_table([run])


def _result(run: Trajectory) -> dict[str, Any]:
    """The content of result.json, with the settings; empty where there is none."""
    kept = read_result(run.path)
    return {} if kept is None else kept.values | {"settings": kept.settings, "dev": kept.dev}


def _settings(run: Trajectory, result: Mapping[str, Any]) -> dict[str, Any]:
    """The run's own account of its experiment."""
    kept = run.info.get("settings")
    found = (kept if isinstance(kept, dict) else {}) | result.get("settings", {})
    named: dict[str, Any] = {name: run.info[name] for name in ("experiment", "corpus") if name in run.info}
    whole: dict[str, Any] = found | named
    return whole


def _require_one_experiment(runs: Sequence[Trajectory], results: Sequence[Mapping[str, Any]]) -> None:
    first: dict[str, tuple[str, Any]] = {}
    for run, result in zip(runs, results, strict=True):
        settings = _settings(run, result)
        for name in SAME:
            if name not in settings:
                continue
            other, value = first.setdefault(name, (run.name, settings[name]))
            if value != settings[name]:
                raise OptionError(
                    f"{run.path}: its {name} is {settings[name]!r}, that of {other} is {value!r}; claims compare "
                    "methods on one model and one data set, so give the runs of one experiment"
                )


def _entry(run: Trajectory, result: Mapping[str, Any], on_gpu: bool) -> dict[str, Any]:
    """One row of ``Evidence.runs``."""
    used = [method for method in (run.method_of(name) for name in run.modules) if method is not None]
    options: dict[str, Any] = {}
    for method in used:
        options |= method.options()
    label = GRANULAR if {method.name for method in used} == {"dora", "magnitude"} else run.method
    others = [f"{name} {options[name]}" for name, own in VARIANTS.items() if name in options and options[name] != own]
    label = ", ".join([label, *others])
    if _settings(run, result).get("base") == "nf4":
        label = f"q{label}"
    rank = result.get("rank", options.get("rank"))
    direction = options.get("direction_rank") or (rank if run.method == "dual-lora" else None)
    return {
        "run": run.name,
        "method": label,
        "rank": rank,
        "direction_rank": direction,
        "trainable": _number(result.get("trainable")),
        "share": _number(result.get("share")),
        "seconds_per_epoch": _number(result.get("seconds_per_epoch")),
        "peak_megabytes": _number(result.get("peak_megabytes")),
        "on_gpu": str(result["device"]).startswith("cuda") if "device" in result else on_gpu,
    }


def _scores(entry: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of ``Evidence.scores`` of one run."""
    given = result.get("scores")
    scores = dict(given) if isinstance(given, Mapping) else {}
    if "best_mcc" in result:
        scores["mcc"] = result["best_mcc"]
    examples = result.get("n_dev")
    for name, value in scores.items():
        n = examples.get(name) if isinstance(examples, Mapping) else examples
        whose = {key: entry[key] for key in ("run", "method", "rank", "direction_rank")}
        known = {"prior": _number((result.get("prior") or {}).get(name))} if name != "mcc" else result["dev"]
        yield whose | {"score": name, "value": _number(value), "n": _number(n)} | known


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan

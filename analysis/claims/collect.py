"""Reading recorded runs into the tables that claims are held against."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.analysis.claims.curves import four_of
from deltaw.analysis.claims.dora import GRANULAR
from deltaw.analysis.claims.evidence import CHANGES, REGIONS, RUNS, SCORES, SPECTRA, Evidence
from deltaw.analysis.claims.scores import guessing
from deltaw.analysis.records.run_folder.results import read_result
from deltaw.analysis.tables.changes import changes_table
from deltaw.analysis.tables.frame import joined
from deltaw.analysis.tables.regions import regions_table
from deltaw.analysis.tables.run import Step
from deltaw.analysis.tables.spectra import spectra_table
from deltaw.analysis.tables.work import HERE, Work
from deltaw.analysis.trajectory import Trajectory

BORAS = ("ft", "lora", "dora", "dora-row", "bora")
DORAS = ("ft", "lora", "dora", "dora-row")
DORAS_KINDS = ("query", "key", "value")
DUALS = ("lora", "dual-lora")
SBORAS = ("sbora-fa", "sbora-fb")

# Options that make another method of one, for a claim that compares them; the value is the method's own.
VARIANTS: dict[str, Any] = {"detach_norm": True, "activation": "relu", "sign": "ste"}
SAME = ("experiment", "model", "data", "corpus", "vision")  # what runs that are compared must share, where they say so


def gather(
    runs: Sequence[Trajectory],
    papers: Iterable[str],
    *,
    on_gpu: bool = False,
    progress: bool = False,
    work: Work = HERE,
) -> Evidence:
    """Measure in recorded runs what the claims of some papers are about.

    Results are read from a run's result.json where it has one.

    Arguments:
        runs: Opened runs; several of a method are told apart by rank, and else averaged.
        papers: Keys of ``PAPERS``; only what their claims want is measured.
        on_gpu: Whether memory was measured on a GPU, where a run's result does not say.
        progress: Show progress bars.
        work: Where and how it is measured.

    Raises:
        OptionError: The runs are of different experiments, or there is none.
        RecordError: A run or its result is damaged, or a run has no checkpoint.
    """
    if not runs:
        raise OptionError("no run is given; name one or more run folders")
    for run in runs:
        if not run.steps:
            raise RecordError(f"{run.path}: no checkpoint was recorded; train on, or leave this run out")
    results = [_result(run) for run in runs]
    _require_one_experiment(runs, results)
    entries = [_entry(run, result, on_gpu) for run, result in zip(runs, results, strict=True)]
    labels = [entry["method"] for entry in entries]
    scores = pd.DataFrame(
        [row for entry, result in zip(entries, results, strict=True) for row in _scores(entry, result)],
        columns=list(SCORES),
    ).astype({"rank": "Int64", "direction_rank": "Int64"})
    weak = guessing(scores)
    wanted = set(papers)
    kinds = {kind for run in runs for kind in _kinds(run)}
    kind = "query" if "query" in kinds else next(iter(_kinds(runs[0])))

    def collect(
        make: Callable[[Trajectory], pd.DataFrame], methods: Sequence[str], paper: str, columns: Sequence[str]
    ) -> pd.DataFrame:
        tables = []
        for run, label, entry in zip(runs, labels, entries, strict=True):
            if paper in wanted and label in methods:
                ranks = {"adapter_rank": entry["rank"], "direction_rank": entry["direction_rank"]}
                # Which entries move follows from the method, whether it has learned or not.
                reason = {} if make is regions else {"guessing": weak.get(entry["run"])}
                tables.append(make(run).assign(method=label, **reason, **ranks))
        if not tables:
            return pd.DataFrame(columns=[*columns, "adapter_rank", "direction_rank"])
        whole = pd.concat(tables, ignore_index=True)
        return whole.astype({"adapter_rank": "Int64", "direction_rank": "Int64"})

    def of_kinds(run: Trajectory, chosen: Sequence[str]) -> list[str]:
        by_kind = _kinds(run)
        return [name for one in chosen for name in by_kind.get(one, [])]

    def spectra(run: Trajectory) -> pd.DataFrame:
        return spectra_table([run], run.steps[-1:], groups=True, progress=progress, work=work)

    boras, doras = (
        [run for run, label in zip(runs, labels, strict=True) if label in methods and paper in wanted]
        for methods, paper in ((BORAS, "bora"), (DORAS, "dora"))
    )
    last, shared = _last_common(boras), _last_common(doras)

    def pairs_of(run: Trajectory) -> dict[str, list[tuple[Step, int]]]:
        """What each paper's claims compare."""
        start = 0 if 0 in run.steps else None  # the base, where the start was not recorded
        after = [step for step in run.steps if step > 0]
        ends = {*four_of(after), *([shared] if shared is not None else [])} if after else set()
        later = {step for step in (run.steps[-1], last) if step}
        return {
            "consecutive": run.pairs("consecutive") if run in boras else [],
            "initial": [(start, end) for end in sorted(later)] if run in boras else [],
            "base": [(None, end) for end in sorted(ends)] if run in doras else [],
        }

    @functools.cache
    def changes(run: Trajectory) -> dict[str, pd.DataFrame]:
        """Return the changes of each kind of pairs; each checkpoint of a module is read once."""
        pairs, own = pairs_of(run), of_kinds(run, [kind])
        others = [name for name in of_kinds(run, DORAS_KINDS) if name not in own]
        every = [pair for of_paper in pairs.values() for pair in of_paper]
        frames = [
            changes_table([run], at, modules=modules, progress=progress, work=work)
            for at, modules in ((every, own), (pairs["base"], others))
            if at and modules
        ]
        whole = joined(frames) if frames else pd.DataFrame(columns=list(CHANGES))
        found = {}
        for name, modules in (("consecutive", own), ("initial", own), ("base", of_kinds(run, DORAS_KINDS))):
            there = {(module, *pair) for module in modules for pair in pairs[name]}
            steps = zip(whole["module"], whole["step_from"].astype(object), whole["step_to"], strict=True)
            keep = [(module, None if a is pd.NA else a, b) in there for module, a, b in steps]
            found[name] = whole[pd.Series(keep, index=whole.index, dtype=bool)].reset_index(drop=True)
        return found

    return Evidence(
        runs=pd.DataFrame(entries, columns=list(RUNS)).astype({"rank": "Int64", "direction_rank": "Int64"}),
        scores=scores,
        consecutive=collect(lambda run: changes(run)["consecutive"], BORAS, "bora", CHANGES),
        initial=collect(lambda run: changes(run)["initial"], BORAS, "bora", CHANGES),
        base=collect(lambda run: changes(run)["base"], DORAS, "dora", CHANGES),
        spectra=collect(spectra, DUALS, "dual-lora", SPECTRA),
        regions=collect(regions, SBORAS, "sbora", REGIONS),
        kind=kind,
    )


def regions(run: Trajectory) -> pd.DataFrame:
    """Return how much of ΔW at the last step is not zero, one row a matrix; see `regions_table`."""
    return regions_table([run])


def _kinds(run: Trajectory) -> dict[str, list[str]]:
    """The modules by kind."""
    found: dict[str, list[str]] = {}
    for name in run.modules:
        found.setdefault(run.labels(name)["kind"], []).append(name)
    return found


def _last_common(runs: Sequence[Trajectory]) -> int | None:
    common = set.intersection(*(set(run.steps) for run in runs)) if runs else set()
    return max(common, default=None)


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

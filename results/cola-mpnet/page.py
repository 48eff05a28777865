"""The tables, figures and verdicts of this folder, from whatever runs are finished; the words of README.md stay.

A table of README.md stands between ``<!-- made by make.py: NAME -->`` and ``<!-- end -->``.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from sign import clouds, correlations_of
from sign import figure as sign_figure

from deltaw.analysis.claims import claims, claims_json, claims_markdown, gather
from deltaw.analysis.figures import cloud, paper_style, rank, save, symmetry, updates
from deltaw.analysis.runs import open_runs, table
from deltaw.analysis.tables.spacing import told
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers.cola import ColaResult
from deltaw.trainers.reproduce.common import results_frame

HERE = Path(__file__).parent
PAPERS = ("bora", "dora", "dual-lora")
PAIRS = ("consecutive", "initial", "base")
TIMES = ["seconds_per_epoch", "peak_megabytes"]  # of a machine that did other work: they count for nothing
ORDER = ("ft", "lora", "dora", "dora-row", "bora", "dual-lora")


def make_page(finished: Sequence[tuple[Path, ColaResult]]) -> None:
    """Write every table, figure and verdict of finished runs, and fill README.md's tables."""
    finished = sorted(finished, key=lambda one: (ORDER.index(one[1].method), one[1].seed))
    results = results_frame([result for _, result in finished]).drop(columns=TIMES)
    runs = open_runs([place for place, _ in finished])
    both = table(runs, "changes", pairs=("consecutive", "initial", "base"))  # every matrix is read once
    changes = {kind: both[both["pairs"] == kind].drop(columns="pairs").reset_index(drop=True) for kind in PAIRS}
    spectra = table(runs, "spectra", steps="last", groups=True)
    drawn = {name: told(frame, runs) for name, frame in (changes | {"spectra": spectra}).items()}
    with paper_style():
        figures = {
            "figure2_symmetry": symmetry(drawn["consecutive"], kind="query"),
            "figure3_updates": updates(drawn["initial"], kind="query"),
            "rank_by_layer": rank(drawn["spectra"]),
        }
        for axis, other in (("column", "dora-row"), ("row", "dora")):
            shown = [method for method in results["method"].unique() if method != other]
            figures[f"cloud_query_{axis}"] = cloud(drawn["base"], kind="query", axis=axis, methods=shown)
        if (HERE / "sign.csv").is_file():
            figures["sign"] = sign_figure(pd.read_csv(HERE / "sign.csv"))
            figures["sign_clouds"] = clouds(
                pd.read_csv(HERE / "sign_mpnet_points.csv"), decay=SHOWN_DECAY, kind="value"
            )
        for name, figure in figures.items():
            save(figure, HERE / f"{name}.png")
    kept = {
        "results": results,
        "methods": summary(results, changes["initial"], spectra),
        "correlations": correlation_table(runs),
        "ranks": spectra[["run", "method", "layer", "kind", "step", "group", "rank", "stable_rank", "effective_rank"]],
        "geometry": geometry(runs),
    }
    for name, frame in kept.items():
        frame.to_csv(HERE / f"{name}.csv", index=False, float_format="%.6g")
    evidence = gather(runs, PAPERS)
    evidence = replace(evidence, runs=evidence.runs.assign(**dict.fromkeys(TIMES, math.nan)))
    outcomes = [outcome for outcome in claims(evidence, PAPERS) if not outcome.missing]
    (HERE / "claims.md").write_text(claims_markdown(outcomes), encoding="utf-8")
    (HERE / "claims.json").write_text(json.dumps(claims_json(outcomes), indent=1, allow_nan=False), encoding="utf-8")
    fill_readme()


def summary(results: pd.DataFrame, initial: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """Return one row a method and kind, the mean over layers and seeds: ΔM and ΔD from start to end, ranks."""
    last = initial[initial["step_to"] == initial.groupby("run")["step_to"].transform("max")]
    wide = last.pivot_table(index=["method", "kind"], columns="axis", values=["delta_m", "delta_d"], sort=False)
    wide.columns = [f"{name}_{axis}" for name, axis in wide.columns]
    whole = spectra[spectra["group"] == "update"] if "group" in spectra else spectra
    ranks = whole.groupby(["method", "kind"], sort=False)[["rank", "stable_rank", "effective_rank"]].mean()
    scores = results.groupby("method", sort=False).agg(
        trainable=("trainable", "first"), best_mcc=("best_mcc", "mean"), best_mcc_std=("best_mcc", "std"),
        final_mcc=("final_mcc", "mean"), seeds=("seed", "nunique"), learning_rate=("learning_rate", "first"),
    )  # fmt: skip
    return scores.join(wide.join(ranks), how="inner").reset_index()


def correlation_table(runs: Sequence[Trajectory]) -> pd.DataFrame:
    """Return r of ΔM and ΔD by run, kind, axis and choice of points: see ``sign.correlations_of``."""
    tables = [correlations_of(run)[1].assign(run=run.name, method=run.method) for run in runs]
    whole = pd.concat(tables, ignore_index=True)
    return whole[["run", "method", "kind", "axis", "points", "pearson", "spearman", "ci_low", "ci_high", "n"]]


def geometry(runs: Sequence[Trajectory]) -> pd.DataFrame:
    """Return the geometry of the last checkpoint against W₀."""
    return table(runs, "geometry", steps="last")


def fill_readme() -> None:
    """Put the tables into README.md anew."""
    page = HERE / "README.md"
    if not page.is_file():
        return

    def made(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n" + "\n".join(TABLES[found[2]]()) + "\n\n<!-- end -->"

    text = page.read_text(encoding="utf-8")
    pattern = r"(<!-- made by make\.py: (\w+) -->).*?<!-- end -->"
    page.write_text(re.sub(pattern, made, text, flags=re.DOTALL), encoding="utf-8")


def methods_lines() -> Iterator[str]:
    """The scores and changes of the query matrices."""
    yield "| method | trainable | seeds | best MCC | ΔM column, row | ΔD column, row | rank | stable rank |"
    yield "|---|---|---|---|---|---|---|---|"
    frame = pd.read_csv(HERE / "methods.csv")
    for row in frame[frame["kind"] == "query"].to_dict(orient="records"):
        spread = "" if pd.isna(row["best_mcc_std"]) else f" ± {row['best_mcc_std']:.3f}"
        yield (
            f"| {row['method']} | {row['trainable']:,} | {row['seeds']} | {row['best_mcc']:.3f}{spread} "
            f"| {row['delta_m_column']:.3g}, {row['delta_m_row']:.3g} | {row['delta_d_column']:.3g}, "
            f"{row['delta_d_row']:.3g} | {row['rank']:.0f} | {row['stable_rank']:.1f} |"
        )


def correlation_lines() -> Iterator[str]:
    """r of the query matrices, the mean over seeds."""
    yield "| method | axis | cloud | last step | over time | consecutive | value, cloud |"
    yield "|---|---|---|---|---|---|---|"
    frame = pd.read_csv(HERE / "correlations.csv")
    mean = frame.groupby(["method", "axis", "kind", "points"], sort=False)["pearson"].mean()
    for method, axis in dict.fromkeys(zip(frame["method"], frame["axis"], strict=True)):
        cells = [mean[method, axis, "query", name] for name in ("cloud", "last", "over time", "consecutive")]
        cells.append(mean[method, axis, "value", "cloud"])
        yield f"| {method} | {axis} | " + " | ".join(f"{cell:+.2f}" for cell in cells) + " |"


def geometry_lines() -> Iterator[str]:
    """The geometry at the end, query matrices, the mean over layers and seeds."""
    yield "| method | rotation left, right (°), chance | drift | off-principal, chance | visible in bfloat16 |"
    yield "|---|---|---|---|---|"
    frame = pd.read_csv(HERE / "geometry.csv")
    last = frame[frame["kind"] == "query"]
    numbers = last.select_dtypes("number").columns
    for method, row in last.groupby("method", sort=False)[list(numbers)].mean().iterrows():
        yield (
            f"| {method} | {row['rotation_left']:.1f}, {row['rotation_right']:.1f}, {row['rotation_expected']:.1f} "
            f"| {row['drift']:.2g} | {row['off_principal']:.3f}, {row['off_principal_expected']:.3f} "
            f"| {100 * row['visible_bfloat16']:.1f} % |"
        )


def sign_lines() -> Iterator[str]:
    """r without and with weight decay, by model and kind, along the axis of the trained magnitudes."""
    yield "| layers, kind, points | " + " | ".join(f"{m}, no decay | {m}, decay" for m in AXIS) + " |"
    yield "|---|" + "---|" * 2 * len(AXIS)
    for layers, file in (("12", "sign_mpnet.csv"), ("6", "sign_minilm.csv"), ("3", "sign.csv")):
        frame = pd.read_csv(HERE / file)
        frame = frame[frame["varied"].isin(["centre", "decay"])]
        r = frame.set_index(["kind", "points", "axis", "method", "value"])["pearson"]
        for kind in ("query", "value"):
            for points in ("cloud", "late", "last"):
                keys = [
                    (kind, points, axis, method, value) for method, axis in AXIS.items() for value in (0, SHOWN_DECAY)
                ]
                cells = [f"{r[key]:+.2f}" if key in r else "" for key in keys]
                yield f"| {layers}, {kind}, {points} | " + " | ".join(cells) + " |"


SHOWN_DECAY = 0.1
AXIS = {"ft": "column", "lora": "column", "dora": "column", "dora-row": "row"}
TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "methods": methods_lines,
    "correlations": correlation_lines,
    "geometry": geometry_lines,
    "sign": sign_lines,
}

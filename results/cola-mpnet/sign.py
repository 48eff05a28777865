"""Where a negative correlation of ΔM and ΔD comes from: one setting of the training is varied after the other.

python results/cola-mpnet/sign.py --out sign-runs
python results/cola-mpnet/sign.py --model minilm --data cola --epochs 1 --only decay --out more --table sign_minilm.csv

Trains short runs of a small model, the built-in one by default; what is finished is only read. sign.csv has one row a
run, kind of matrix, axis and choice of points, sign_points.csv the points of the runs that vary weight decay.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import click
import pandas as pd
from matplotlib.figure import Figure

from deltaw.analysis import correlation
from deltaw.analysis.figures.drawing.facts import method_name
from deltaw.analysis.figures.drawing.style import method_styles, pale
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers.cola import ColaSettings, train_cola
from deltaw.trainers.cola.data import load_corpus

HERE = Path(__file__).parent
METHODS = ("ft", "lora", "dora", "dora-row")  # DoRA's Figure 2, its equation and its authors' code
ADAPTERS_RATE, FULL_RATE = 2e-3, 5e-5  # as in results/cola-minilm; the built-in model has its own
BATCH, EPOCHS = 32, 20
DECAYS = (0.3, 1.0, 0.1)


@dataclass(frozen=True)
class Trial:
    """One run: what is varied, its value, and the settings."""

    varied: str
    value: float
    settings: ColaSettings
    steps: int

    @property
    def name(self) -> str:
        """The folder's."""
        return f"{self.settings.method}-{self.varied}-{self.value:g}"

    @property
    def shrinkage(self) -> float:
        """λ Σ lr_t, the share by which decay alone shrinks what it acts on, to first order; the schedule is linear."""
        return self.settings.weight_decay * self.settings.rate() * self.steps / 2


def trials(
    model: str | None,
    data: str,
    epochs: int,
    only: Sequence[str],
    methods: Sequence[str] = METHODS,
    decays: Sequence[float] = DECAYS,
    rates: tuple[float, float] = (ADAPTERS_RATE, FULL_RATE),
) -> Iterator[Trial]:
    """Yield the runs: the centre, weight decay, then the others."""
    shared = ColaSettings(method="lora", model=model, data=data, epochs=epochs, save_every=1000)
    if model is not None:
        shared = replace(shared, precision="bfloat16", group_by_length=True)
    an_epoch = math.ceil(len(load_corpus(data).train[0]) / BATCH)
    values = {
        "centre": (0.0,),
        "decay": decays,
        "rate": (4.0, 0.25),
        "warm-up": (0.5,),
        "epochs": (max(1, epochs // 4), 2 * epochs),
    }
    for varied, tried in values.items():
        for value in tried if varied == "centre" or not only or varied in only else ():
            for method in methods:
                own = None if model is None else rates[method == "ft"]
                run = replace(shared, method=method, learning_rate=own)
                if varied == "decay":
                    run = replace(run, weight_decay=2 * value / (run.rate() * epochs * an_epoch))
                elif varied == "rate":
                    run = replace(run, learning_rate=value * run.rate())
                elif varied == "warm-up":
                    run = replace(run, warmup_ratio=value)
                elif varied == "epochs":
                    run = replace(run, epochs=int(value))
                yield Trial(varied, value, run, run.epochs * an_epoch)


def four_steps(run: Trajectory) -> list[int]:
    """Return four recorded steps, evenly spaced, the last at the end: those of DoRA's Figure 2."""
    return evenly([step for step in run.steps if step > 0])


def evenly(steps: Sequence[int]) -> list[int]:
    """Return four of these, evenly spaced, the last one last."""
    return [steps[round(q * len(steps)) - 1] for q in (0.25, 0.5, 0.75, 1.0)]


def correlations_of(run: Trajectory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the points of the cloud, and r of ΔM and ΔD by kind and axis, for several choices of points.

    ``cloud``: against W₀, four checkpoints evenly spaced, all layers, DoRA's Figure 2. ``late``: the same with four of
    the second half. ``last``: the last of them, the layers alone. ``over time``: the mean over the layers of each one's
    own r over all checkpoints. ``consecutive``: from each checkpoint to the next, all layers; ``sparse``: the same over
    the four checkpoints alone.
    """
    four = four_steps(run)
    both = run.changes(("consecutive", "base"))
    base = both[(both["pairs"] == "base") & (both["step_to"] > 0)]
    chosen = {
        "cloud": base[base["step_to"].isin(four)],
        "late": base[base["step_to"].isin(evenly([step for step in run.steps if step > run.steps[-1] / 2]))],
        "last": base[base["step_to"] == four[-1]],
        "consecutive": both[both["pairs"] == "consecutive"],
        "sparse": run.changes(list(pairwise([run.steps[0], *four]))),
    }
    by = ["kind", "axis"]
    found = [correlation(frame, by).assign(points=name) for name, frame in chosen.items()]
    own = correlation(base, [*by, "module"]).groupby(by, sort=False)[["pearson", "spearman"]].mean().reset_index()
    return chosen["cloud"], pd.concat([*found, own.assign(points="over time")], ignore_index=True)


def of_trial(trial: Trial, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the points and the correlations of a run, with what was varied."""
    columns = ["method", "varied", "value", "shrinkage"]
    own = pd.DataFrame([[trial.settings.method, trial.varied, trial.value, trial.shrinkage]], columns=columns)
    points, table = correlations_of(Trajectory.open(folder))
    points = points[["layer", "kind", "axis", "step_to", "delta_m", "delta_d"]]
    return own.merge(points, how="cross"), own.merge(table, how="cross")


VARIED = {
    "decay": "share by which decay shrinks",
    "rate": "learning rate, times",
    "warm-up": "warm-up, share",
    "epochs": "epochs",
}


def figure(table: pd.DataFrame) -> Figure:
    """Draw r of the query matrices in every run, by what is varied: of the cloud above, of the last step below."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    grid = figure.subplots(2, len(VARIED), sharex="col", sharey=True)
    looks = method_styles(METHODS)
    for axes, (points, title) in zip(grid, (("cloud", "cloud"), ("last", "layers at the end")), strict=True):
        query = table[(table["kind"] == "query") & (table["points"] == points)]
        for ax, varied in zip(axes, VARIED, strict=True):
            for method in METHODS:
                for axis, line in (("column", "-"), ("row", ":")):
                    rows = query[(query["method"] == method) & (query["axis"] == axis)]
                    rows = rows[rows["varied"].isin([varied, "centre"])]
                    rows = rows.assign(x=_places(rows, varied)).sort_values("x")
                    color, marker = looks[method]
                    label = f"{method_name(method)}, {axis}"
                    ax.plot(rows["x"], rows["pearson"], line, color=color, marker=marker, ms=3, lw=0.9, label=label)
            ax.axhline(0, color=pale(), lw=0.8, zorder=0)
            ax.set_ylim(-1.05, 1.05)
            if varied in ("rate", "epochs"):
                ax.set_xscale("log", base=2)
                ax.xaxis.set_major_formatter("{x:g}")
        axes[0].set_ylabel(f"r, {title}")
    for ax, label in zip(grid[1], VARIED.values(), strict=True):
        ax.set_xlabel(label)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), fontsize="small", ncols=4, loc="outside upper center")
    return figure


def clouds(points: pd.DataFrame, kind: str = "query", decay: float = 0.3) -> Figure:
    """Draw the clouds of every method without weight decay, above, and with it, below; a colour a step."""
    methods = [method for method in METHODS if method in set(points["method"])]
    figure = Figure(figsize=(1.8 * len(methods) + 0.3, 3.9), layout="constrained")
    grid = figure.subplots(2, len(methods))
    for axes, value in zip(grid, (0.0, decay), strict=True):
        for ax, method in zip(axes, methods, strict=True):
            axis = "row" if method == "dora-row" else "column"
            own = points[(points["kind"] == kind) & (points["axis"] == axis)]
            own = own[(own["method"] == method) & (own["value"] == value)]
            for step, rows in own.groupby("step_to"):
                ax.scatter(1e3 * rows["delta_d"], 1e3 * rows["delta_m"], s=9, label=f"step {step}")
            r = correlation(own, [])["pearson"].item()
            ax.set_title(f"{method_name(method)}, r = {r:.2f}", fontsize="medium")
        axes[0].set_ylabel("ΔM (10⁻³)" + (f", decay {value:g}" if value else ", no decay"))
    for ax in grid[1]:
        ax.set_xlabel("ΔD (10⁻³)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), fontsize="small", ncols=4, loc="outside upper center")
    return figure


def _places(frame: pd.DataFrame, varied: str) -> "pd.Series[float]":
    """Return the values of what is varied, where the centre has its own."""
    centre = {"decay": 0.0, "rate": 1.0, "warm-up": 0.06, "epochs": EPOCHS}[varied]
    return frame["value"].where(frame["varied"] != "centre", centre)


@click.command()
@click.option("--model", help="A small model's folder; the built-in one.")
@click.option("--data", default="builtin", help="The folder with CoLA's TSV files; the built-in sentences.")
@click.option("--epochs", type=click.IntRange(1), default=EPOCHS, show_default=True, help="Where they are not varied.")
@click.option("--only", multiple=True, help="What is varied; may be repeated. All by default.")
@click.option("--method", "methods", multiple=True, default=METHODS, help="May be repeated. All by default.")
@click.option("--decay", "decays", multiple=True, type=float, default=DECAYS, help="Shares; may be repeated.")
@click.option("--lr", default=ADAPTERS_RATE, show_default=True, help="Of adapters on a model of one's own.")
@click.option("--ft-lr", default=FULL_RATE, show_default=True, help="Of full fine-tuning there.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder of the runs.")
@click.option("--table", default=HERE / "sign.csv", type=click.Path(path_type=Path), help="Where the table goes.")
def main(
    model: str | None,
    data: str,
    epochs: int,
    only: tuple[str, ...],
    methods: tuple[str, ...],
    decays: tuple[float, ...],
    lr: float,
    ft_lr: float,
    out: Path,
    table: Path,
) -> None:
    """Train what is not finished, and write the table after every run."""
    rows, points = [], []
    for trial in trials(model, data, epochs, only, methods, decays, (lr, ft_lr)):
        folder = out / trial.name
        result = train_cola(trial.settings, folder, progress=False)
        cloud, found = of_trial(trial, folder)
        rows.append(found.assign(mcc=result.best_mcc))
        pd.concat(rows, ignore_index=True).round(4).to_csv(table, index=False)
        if trial.varied in ("centre", "decay"):
            points.append(cloud)
            pd.concat(points, ignore_index=True).to_csv(
                table.with_name(f"{table.stem}_points.csv"), index=False, float_format="%.5g"
            )
        seen = found[(found["kind"] == "query") & (found["points"] == "cloud")].set_index("axis")["pearson"]
        print(f"{trial.name}: r of query {seen['column']:+.2f} by column, {seen['row']:+.2f} by row", flush=True)


if __name__ == "__main__":
    main()

"""How time grows with checkpoints, matrices, size, rank and workers: measured, fitted, drawn, and extrapolated.

    python benchmarks/scaling.py          measure (minutes); write results/scaling.json, docs/scale.md, its picture
    python benchmarks/scaling.py --draw   draw what results/scaling.json holds

Each point is the least of a few rounds of one table in a process of its own. A slope is that of a line through the
logarithms: 1 is proportional growth. The cost model takes bytes a second and operations a second from these points, and
is held against three runs that the fit has not seen.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from run import machine
from safetensors.torch import save_file
from tabulate import tabulate

HERE = Path(__file__).parent
RESULT = HERE / "results" / "scaling.json"
PICTURES = HERE.parent / "docs" / "images"
PAGE = HERE.parent / "docs" / "scale.md"

# What is varied, and what stands still meanwhile. Of LoRA the rank table, of full checkpoints ΔM and ΔD.
FULL = {"matrices": 2, "size": 2048, "checkpoints": 6}
LARGE = 2048  # below that, files lie in small pages of memory, and an entry takes up to four times as long
LORA = {"matrices": 8, "size": 2048, "checkpoints": 8, "rank": 16}
CURVES: dict[str, tuple[str, str, list[int]]] = {
    "changes, checkpoints": ("full", "checkpoints", [3, 6, 12, 24]),
    "changes, matrices": ("full", "matrices", [1, 2, 4, 8]),
    "changes, size": ("full", "size", [512, 1024, 2048, 4096, 8192]),
    "spectra, size": ("dense", "size", [256, 512, 1024, 2048]),
    "rank table, rank": ("lora", "rank", [8, 16, 32, 64, 128]),
    "rank table, size": ("lora", "size", [512, 1024, 2048, 4096, 8192, 16384]),
}
UNSEEN = [("full", 3, 2560, 5), ("full", 2, 3072, 8), ("full", 1, 4608, 4)]  # matrices, size, checkpoints
WORKERS = [1, 2]
# What the model is applied to: bytes a number, (matrices, out, in) by kind, checkpoints.
LLAMA_7B = [(128, 4096, 4096), (64, 11008, 4096), (32, 4096, 11008)]
LLAMA_70B = [(160, 8192, 8192), (160, 1024, 8192), (160, 28672, 8192), (80, 8192, 28672)]

TIMED = """
import json, sys, time
import torch
torch.set_num_threads(int(sys.argv[3]))
from deltaw.analysis import Trajectory
def once(folder, what, jobs=1):
    run = Trajectory.open(folder, base=(f"{folder}/base.safetensors" if what != "lora" else None))
    start = time.perf_counter()
    if what == "full":
        run.changes(("consecutive", "base"), jobs=jobs, cache=False)
    else:
        run.spectra("last" if what == "dense" else None, jobs=jobs, cache=False)
    return time.perf_counter() - start
what, rounds, jobs = sys.argv[2], int(sys.argv[4]), int(sys.argv[5])
taken = [once(sys.argv[1], what, jobs) for _ in range(rounds)]
print(json.dumps({"seconds": min(taken)}))
"""


def save_run(folder: Path, what: str, matrices: int, size: int, checkpoints: int, rank: int = 16) -> int:
    """Write checkpoints of a kind, and return their bytes."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    base = {f"layers.{i}.query.weight": 0.02 * normal(size, size) for i in range(matrices)} if what != "lora" else {}
    noise = normal(size, size)
    written = 0
    for step in range(1, checkpoints + 1):
        place = folder / f"checkpoint-{step}"
        place.mkdir(parents=True)
        if what == "lora":
            tensors = {
                f"base_model.model.layers.{i}.query.lora_{part}.weight": normal(*shape)
                for i in range(matrices)
                for part, shape in (("A", (rank, size)), ("B", (size, rank)))
            }
            file = place / "adapter_model.safetensors"
            config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["query"]}
            (place / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        else:
            tensors = {name: weight + 1e-5 * step * noise for name, weight in base.items()}
            file = place / "model.safetensors"
        save_file(tensors, file)
        written += file.stat().st_size
    if base:
        save_file(base, folder / "base.safetensors")
        written += (folder / "base.safetensors").stat().st_size
    return written


def timed(what: str, *, threads: int = 1, rounds: int = 3, jobs: int = 1, **given: int) -> dict[str, float]:
    """Seconds of one table, in a process of its own; the first round warms up."""
    with tempfile.TemporaryDirectory() as folder:
        written = save_run(Path(folder), "full" if what == "dense" else what, **given)
        command = [sys.executable, "-c", TIMED, folder, what, str(threads), str(rounds), str(jobs)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"bytes": written}


def slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def measured() -> dict[str, Any]:
    """All points, the model's constants, and what the model says of runs that it has not seen."""
    curves: dict[str, Any] = {}
    for name, (what, along, values) in CURVES.items():
        points = []
        for value in values:
            given = {**(LORA if what == "lora" else FULL), along: value} | (
                {"checkpoints": 1} if what == "dense" else {}
            )
            points.append({along: value} | timed(what, **given))
            print(f"{name}: {points[-1]}", file=sys.stderr, flush=True)
        x, y = [point[along] for point in points], [point["seconds"] for point in points]
        curves[name] = {"along": along, "points": points, "slope": slope(x[-3:], y[-3:])}
    busy = {"matrices": 8, "size": 2048, "checkpoints": 1}
    workers = [{"workers": jobs} | timed("dense", jobs=jobs, rounds=1, **busy) for jobs in WORKERS]
    curves["spectra, workers"] = {"along": "workers", "points": workers}
    constants = fitted(curves)
    unseen = []
    for what, matrices, size, checkpoints in UNSEEN:
        found = timed(what, matrices=matrices, size=size, checkpoints=checkpoints)
        unseen.append(
            {"matrices": matrices, "size": size, "checkpoints": checkpoints, "seconds": found["seconds"]}
            | {"predicted": predicted(constants, [(matrices, size, size)], checkpoints, 4)["seconds"]}
        )
    return {
        "machine": machine(),
        "curves": curves,
        "constants": constants,
        "unseen": unseen,
        "applied": {
            "7B × 80 full checkpoints, bfloat16": predicted(constants, LLAMA_7B, 80, 2),
            "70B × 100 full checkpoints, bfloat16": predicted(constants, LLAMA_70B, 100, 2),
        },
    }


def fitted(curves: dict[str, Any]) -> dict[str, float]:
    """Seconds = entries · a + pairs · b of ΔM and ΔD, by least squares; and c · n³ of a spectrum, at the largest."""
    rows, taken = [], []
    for name in ("changes, checkpoints", "changes, matrices", "changes, size"):
        for point in curves[name]["points"]:
            given = {**FULL, curves[name]["along"]: point[curves[name]["along"]]}
            matrices, size, checkpoints = given["matrices"], given["size"], given["checkpoints"]
            if size < LARGE:
                continue
            rows.append([matrices * (checkpoints + 1) * size**2, matrices * (2 * checkpoints - 1)])
            taken.append(point["seconds"])
    scale = np.asarray(taken)[:, None]
    (entry, pair), *_ = np.linalg.lstsq(np.asarray(rows) / scale, np.ones(len(taken)), rcond=None)
    last = curves["spectra, size"]["points"][-1]
    return {
        "seconds_per_entry": float(entry),
        "seconds_per_pair": max(float(pair), 0.0),
        "seconds_per_spectrum_entry": last["seconds"] / (FULL["matrices"] * last["size"] ** 3),  # of the largest
    }


def predicted(
    constants: dict[str, float], shapes: list[tuple[int, int, int]], checkpoints: int, itemsize: int
) -> dict[str, float]:
    """What ΔM and ΔD of consecutive and base pairs cost, on one core, with the files in the page cache.

    bytes = itemsize · entries · (checkpoints + 1)
    seconds = a · entries · (checkpoints + 1) + b · matrices · (2 checkpoints − 1)
    memory = 4 · the largest matrix
    """
    entries = sum(count * out * width for count, out, width in shapes)
    matrices = sum(count for count, _, _ in shapes)
    pairs = matrices * (2 * checkpoints - 1)
    return {
        "bytes": itemsize * entries * (checkpoints + 1),
        "seconds": constants["seconds_per_entry"] * entries * (checkpoints + 1) + constants["seconds_per_pair"] * pairs,
        "memory": 4 * itemsize * max(out * width for _, out, width in shapes),
        "spectra_seconds": constants["seconds_per_spectrum_entry"]
        * checkpoints
        * sum(count * min(out, width) ** 2 * max(out, width) for count, out, width in shapes),
    }


def draw(found: dict[str, Any]) -> None:
    """One picture: a curve a cell, both axes logarithmic, the fitted slope in its title."""
    curves = found["curves"]
    figure = Figure(figsize=(9, 2.6 * math.ceil(len(curves) / 3)), layout="constrained")
    axes = figure.subplots(math.ceil(len(curves) / 3), 3, squeeze=False).ravel()
    for ax, (name, curve) in zip(axes, curves.items(), strict=False):
        x = [point[curve["along"]] for point in curve["points"]]
        y = [point["seconds"] for point in curve["points"]]
        ax.plot(x, y, "o-", color="#3b6fb6", markersize=4)
        ax.set(xscale="log", yscale="log", xlabel=curve["along"], title=titled(name, curve))
        if "slope" in curve:  # what the number in the title is of
            middle = [math.exp(np.mean(np.log(values[-3:]))) for values in (x, y)]
            ax.plot(x[-3:], [middle[1] * (value / middle[0]) ** curve["slope"] for value in x[-3:]], "--", color="0.6")
        ax.set_xticks(x, [str(value) for value in x])
        ax.set_yticks(y, [f"{value:.2g}" for value in y])  # the measured seconds: a decade has often but one tick
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[::3]:
        ax.set_ylabel("seconds")
    for ax in axes[len(curves) :]:
        ax.set_visible(False)
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / "scaling.svg", metadata={"Date": None})
    figure.savefig(PICTURES / "scaling.png", dpi=130)


def titled(name: str, curve: dict[str, Any]) -> str:
    if "slope" in curve:
        return f"{name.split(',', maxsplit=1)[0]}: slope {curve['slope']:.2f}"
    points = curve["points"]
    gain = points[0]["seconds"] / points[-1]["seconds"]
    return f"{name.split(',', maxsplit=1)[0]}: {gain:.2f} × with {points[-1]['workers']}"


def tables(found: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/scale.md, by the name of their place."""
    a, b, c = (found["constants"][f"seconds_per_{name}"] for name in ("entry", "pair", "spectrum_entry"))
    constants = [{"a": f"{1e9 * a:.2f} ns an entry", "b": f"{1e3 * b:.2f} ms a pair", "c": f"{1e12 * c:.1f} ps"}]
    unseen = [
        {
            "matrices": f"{run['matrices']} of {run['size']}×{run['size']}",
            "checkpoints": run["checkpoints"],
            "measured": f"{run['seconds']:.2f} s",
            "the model says": f"{run['predicted']:.2f} s",
            "off by": f"{100 * (run['predicted'] / run['seconds'] - 1):+.0f} %",
        }
        for run in found["unseen"]
    ]
    applied = [
        {
            "run": name.removesuffix(", bfloat16"),
            "bytes": f"{cost['bytes'] / 1e12:.2f} TB",
            "memory": f"{cost['memory'] / 1e9:.2f} GB",
            "ΔM and ΔD, one core": hours(cost["seconds"]),
            "64 workers": hours(cost["seconds"] / 64),
            "read at 1 GB/s": hours(cost["bytes"] / 1e9),
            "all spectra, 64 workers": hours(cost["spectra_seconds"] / 64),
        }
        for name, cost in found["applied"].items()
    ]
    made = {"constants": constants, "unseen": unseen, "applied": applied}
    return {
        name: tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) for name, rows in made.items()
    }


def hours(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def write_page(found: dict[str, Any]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables(found).items():
        place = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = place.subn(lambda at, table=table: f"{at[1]}{table}\n{at[2]}", text)
        assert count == 1, name
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="draw what was measured before")
    if not parser.parse_args().draw:
        RESULT.write_text(json.dumps(measured(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    draw(found)
    write_page(found)


if __name__ == "__main__":
    main()

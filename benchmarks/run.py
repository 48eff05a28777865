"""Run the benchmarks, print one table, and write it to benchmarks/results/ with a description of the machine.

Those that are named take the place of their rows in the kept table; the others stay as they were measured.

    python benchmarks/run.py                    all of them
    python benchmarks/run.py change recording   bench_change.py and bench_recording.py

Each module bench_NAME.py has rows(): a list of mappings with name, ours_seconds, other_name, other_seconds, ratio (the
other over ours: above 1, ours is faster), goal (the ratio wanted at least, or None), met, and note where it needs one.
Seconds and ratio are None where nothing could be measured.
"""

import argparse
import importlib
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

HERE = Path(__file__).parent
INTRODUCTION = (
    "The ratio is the other's time over deltaw's: above 1, deltaw is faster. Made by `make bench`, or in parts by\n"
    "`python benchmarks/run.py NAME`. A load before of more than .5 says that something else was running."
)
HEADERS = ["what", "deltaw", "against", "", "ratio", "goal", "met", "note"]


def machine() -> dict[str, Any]:
    """What the numbers depend on; no name of a host, no path."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def line(row: dict[str, Any]) -> list[str]:
    goal = row.get("goal")
    return [
        row["name"],
        duration(row["ours_seconds"]),
        row["other_name"],
        duration(row["other_seconds"]),
        "" if row["ratio"] is None else f"{row['ratio']:.3g}",
        "" if goal is None else f"≥ {goal:.3g}",
        "" if row.get("met") is None else "yes" if row["met"] else "no",
        row.get("note", ""),
    ]


def main() -> None:
    there = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(there)}; default: all")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="default: benchmarks/results")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(there)):
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(there)}")

    sys.path.insert(0, str(HERE))
    kept = given.out / "benchmarks.json"
    parts: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))["parts"] if kept.exists() else {}
    for name in given.names or there:
        print(f"{name} …", file=sys.stderr, flush=True)
        about = machine()
        parts[name] = {"machine": about, "rows": importlib.import_module(f"bench_{name}").rows()}
        print(tabulate([line(row) for row in parts[name]["rows"]], headers=HEADERS, disable_numparse=True), flush=True)

        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "benchmarks.md").write_text(page(parts), encoding="utf-8")
        kept.write_text(json.dumps({"parts": parts}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def page(parts: dict[str, Any]) -> str:
    """The kept table: a part a benchmark, each with the machine that it was measured on."""
    lines = ["# Benchmarks", "", INTRODUCTION, ""]
    for name in sorted(parts):
        about, rows = parts[name]["machine"], [line(row) for row in parts[name]["rows"]]
        said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items() if value is not None)
        lines += [f"## {name}", "", f"{said}.", ""]
        lines += [tabulate(rows, headers=HEADERS, disable_numparse=True, tablefmt="github"), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""``deltaw inspect``: what is recorded here, is it whole, and is it sound."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import click

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.analysis.printable import printable
from deltaw.cli.commands import Command
from deltaw.cli.options import base_option, json_option, modules_option
from deltaw.cli.output import emit, emit_json, in_columns, progress

NAMED, SAID, LONGEST = 8, 100, 100  # names, texts of a file's metadata, and characters of one that are shown


@click.command("inspect", cls=Command)
@click.argument("path", type=click.Path())
@base_option
@modules_option
@click.option(
    "--merge-into",
    metavar="MODEL",
    help="The model that was quantised for the training (QLoRA): what merging the update into it costs.",
)
@click.option(
    "--verify", is_flag=True, help="Read every file, compare checksums where there are any, check every step."
)
@click.option("--quick", is_flag=True, help="Look at names and sizes alone; read no weights.")
@json_option
def command(
    path: str,
    base: str | None,
    modules: tuple[str, ...],
    merge_into: str | None,
    verify: bool,
    quick: bool,
    as_json: bool,
) -> None:
    """Show what a run holds, whether it is whole, and whether it is sound; exit code 1 where something is broken.

    PATH is a run that deltaw recorded, an output folder of Hugging Face or PEFT, a folder of checkpoints, or its
    address. The checks: weights that are not finite, explode or never moved, an adapter whose update is still zero,
    magnitudes still at their start, a base that is not this run's, steps that repeat; and how much of the last update
    is left when it is merged into bfloat16 or float16. Of a whole model it says what is not shown (embeddings, norms,
    biases, convolutions) and, with a base, what share of ‖ΔW‖² that holds.

    QLoRA trains on the dequantised base. Merged into the 16-bit model instead, the update loses what the
    quantisation had changed, which is often more than the update: --merge-into MODEL says how much.

    A run that deltaw recorded keeps its own base; --base holds it against another.

    \b
    Example:
      deltaw inspect runs/bora --verify
      deltaw inspect output/checkpoint-500 --base roberta-base
      deltaw inspect qlora --base llama-bnb-4bit --merge-into llama
    """
    from deltaw.analysis.inspection.inspect import inspect_run

    if quick and merge_into:
        raise OptionError("--quick reads no weights, --merge-into needs them; leave one of them out")
    found = inspect_run(
        path,
        base=base,
        modules=modules or None,
        verify=verify,
        check=not quick,
        merge_into=merge_into,
        progress=progress(as_json),
    )
    if as_json:
        emit_json(found)
    else:
        emit(_page(found))
    broken = [finding for finding in found.get("findings", ()) if finding["level"] == "broken"]
    if broken:
        where = f"{broken[0]['module']}: " if broken[0]["module"] else ""
        raise RecordError(f"{found['path']}: is broken: {where}{broken[0]['message']}")


def _page(found: dict[str, Any]) -> str:
    steps = found["steps"]
    options = "; ".join(f"{k}={v}" for entry in found.get("options", {}).values() for k, v in entry.items())
    span = f"{len(steps)}, from {steps[0]} to {steps[-1]}" if steps else "none yet"
    if not found["steps_known"]:
        span = "1, the files do not say of which step"
    if found["unfinished"]:
        span += "; still being recorded, or its recorder was killed"
    named = f"; the adapter names {found['base_named']}" if found["base_named"] else ""
    checked = "sizes" if found["verified"] is None else f"checksums of {found['verified']} files"
    rows = [
        ("run", found["path"]),
        ("format", found["format"]),
        ("method", found["method"] + (f" ({options})" if options else "")),
        ("base", (found["base"] or "not known: ΔM and ΔD need it (--base)") + named),
        ("checkpoints", span),
    ]
    rows[2:2] = _of_adapter(found["info"])
    if "bytes" in found:
        size = found["bytes"]
        rows.insert(3, ("created", found["created"]))
        rows.append(("size", f"{size['base'] / 1e6:.2f} MB base, {size['checkpoints'] / 1e6:.2f} MB checkpoints"))
    for module, (before, now) in found["info"].get("resized", {}).items():
        told = f"{module} has {before} rows in the base and {now} here: the {min(before, now)} of both are compared"
        rows.append(("resized", told))
    if found["left_out"]:
        rows.append(("left out", "; ".join(map(_sort, found["left_out"]))))
    rows.append(("whole", f"yes ({checked})"))
    if "findings" in found:
        shown = ", ".join(map(str, found["checked"]))
        if not found["steps_known"]:
            shown = "unknown"
        what = f"steps {shown}" if len(found["checked"]) <= 4 else f"{len(found['checked'])} steps"
        count = len(found["findings"])
        rows.append(("sound", f"yes ({what})" if not count else f"{count} findings ({what})"))
    parts = [_beside(rows)]
    if found.get("findings"):
        parts.append(in_columns(found["findings"], maxcolwidths=[None, None, 40, None, 60]))
    if found.get("precision"):
        parts.append(_survival(found["precision"]))
    if found.get("merges"):
        parts.append(_merges(found["merges"]))
    parts.append(in_columns([{**m, "shape": "×".join(map(str, m["shape"]))} for m in found["modules"]]))
    return "\n\n".join(parts)


def _sort(left: dict[str, Any]) -> str:
    """What is not shown: how many tensors of a sort, and how much of the update they hold."""
    told = [] if left["share"] is None else [f"{100 * left['share']:.3g} % of ‖ΔW‖²"]
    told += [f"{left['unknown']} not in the base, or of another shape"] if left["unknown"] else []
    return f"{len(left['tensors'])} {left['sort']}" + (f" ({', '.join(told)})" if told else "")


def _of_adapter(info: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of an adapter: what its numbers lack; of another tool's, whose it is and what its file says."""
    notes = [("note", note) for note in info.get("notes", ())]
    if "adapter" not in info:
        return notes
    rows = [("adapter", info["adapter"]), *notes]
    if info.get("left_out"):
        more = ", …" if len(info["left_out"]) > NAMED else ""
        rows.append(("left out", f"{len(info['left_out'])}: {', '.join(info['left_out'][:NAMED])}{more}"))
    said = sorted(info["metadata"].items())
    return rows + [(name, f"{text[:LONGEST]}{'…' if len(text) > LONGEST else ''}") for name, text in said[:SAID]]


def _beside(rows: Sequence[tuple[str, str]]) -> str:
    """Each value beside its name, without a head."""
    from tabulate import tabulate

    return tabulate([(name, printable(str(value))) for name, value in rows], tablefmt="plain")


def _survival(rows: Sequence[dict[str, Any]]) -> str:
    """The table of what is left of the last update when it is merged, over all modules."""
    by_dtype = defaultdict(list)
    for row in rows:
        by_dtype[row["dtype"]].append(row)
    means = [
        {
            "merged into": dtype,
            "entries that change": f"{100 * fmean(row['entries'] for row in of_dtype):.3g} %",
            "error of the merged update": f"{100 * fmean(row['error'] for row in of_dtype):.3g} %",
        }
        for dtype, of_dtype in by_dtype.items()
    ]
    return in_columns(means, disable_numparse=True)


def _merges(rows: Sequence[dict[str, Any]]) -> str:
    """What merging into the other model costs: over all modules, and where it is worst."""
    sizes = sorted(row["distance"] for row in rows)
    worst = max(rows, key=lambda row: row["distance"])
    return (
        f"merged into the other model: it is {median(sizes):.3g} times ‖ΔW‖ away from the base (median of {len(rows)} "
        f"modules; {sizes[0]:.3g} to {sizes[-1]:.3g}, most in {printable(worst['module'])}); the merged weights are "
        f"{100 * median(row['error'] for row in rows):.3g} % of ‖ΔW‖ from what was trained"
    )

"""The screen that compares two runs: what differs, in words, and the matrices that differ most."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.analysis.names import kind_of, layer_of
from deltaw.analysis.printable import printable
from deltaw.cli.layout import fitted, terminal, wrapped_lines

if TYPE_CHECKING:
    import pandas as pd

MATRICES = 10  # that differ most
NAMES = 3  # of modules that are named one by one
SAME = 1e-12  # a difference that rounding alone makes: exact factors are multiplied in float64
WORDS = {  # what PEFT's configuration calls it, and what it is
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "base_model_name_or_path": "base",
}
SAID_BY_METHOD = ("use_dora", "use_rslora", "rank_stabilized", "peft_type")
TELLING = ("rank", "alpha", "dropout", "targets")  # where only one of the two says it
EXPLAINED = {
    "difference (differ)": "‖ΔW₁ − ΔW₂‖ over the mean of ‖ΔW₁‖ and ‖ΔW₂‖: 0 where the updates are the same, 2 where "
    "they are opposite",
    "‖ΔW₁‖, ‖ΔW₂‖": "how large the two updates are: Frobenius norms, the root of the sum of the squared entries",
    "cosine": "of the two updates as vectors: 1 where they point the same way; by chance 0 ± 1/√(out·in)",
    "ΔM, ΔD": "from the first's weights to the second's, the mean over rows, and over columns: how much longer or "
    "shorter the vectors are (in units of the weights), and 1 − cos of the angle between them",
    "rank": "how many singular values of each update are above what rounding alone would give",
    "overlap": "the share of the first's k leading input directions (right singular vectors; k is --rank, or the lower "
    "rank) that lies in the second's: 1 where both span the same, k/in by chance",
    "angle": "the smallest angle between these two spans, in degrees",
    "by chance": "what two updates of this shape have that have nothing in common: in brackets, or in the line below",
}


def screen(
    frame: "pd.DataFrame",
    names: tuple[str, str],
    named_base: str | None,
    *,
    every: bool = False,
    closing: Sequence[str] = (),
) -> list[str]:
    """Return the lines of the answer: at most as many as the terminal has, where it has 24 or more.

    Arguments:
        frame: As `deltaw.compare` makes it.
        names: What the two are called.
        named_base: What an adapter says that its base is, where the weights are not known.
        every: All matrices and options.
        closing: Lines at the end.
    """
    width, height = terminal()
    frame = _printable(frame)
    names = printable(names[0]), printable(names[1])
    shown = frame if every else _most(frame).head(MATRICES)
    same = _same_everywhere(frame)
    matrices: list[str] = []
    if same:
        matrices.append(_same(frame, names))
    else:
        matrices += _table(frame, shown, width)
        matrices += [line for text in _means(frame) for line in wrapped_lines(text, width)]
    missing = frame["norm_first"].isna().all() or frame["delta_m_row"].isna().all()
    if missing and not same:
        what = "updates, cosines and ranks" if frame["norm_first"].isna().all() else "ΔM and ΔD"
        matrices += wrapped_lines(f"{what} need the weights before training: --base {named_base or 'FOLDER'}", width)
    room = height - 1 - len(matrices) - 2 - sum(len(wrapped_lines(line, width)) for line in closing)
    head = _modules(frame, names, width)
    head = _options(frame.attrs["settings"], names, width, None if every else max(2, room - len(head))) + head
    end = [line for text in closing for line in wrapped_lines(text, width)]
    spare = room - len(head) > 0
    return [*head, *([""] if head else []), *matrices, *([""] if spare else []), *end]


def _printable(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the table with the texts of strangers as a terminal shows them: an escaped name is longer."""
    shown = frame.assign(module=frame["module"].map(printable))
    shown.attrs = {
        "settings": [[printable(text) for text in said] for said in frame.attrs["settings"]],
        **{which: [printable(name) for name in frame.attrs[which]] for which in ("only_first", "only_second")},
    }
    return shown


def titles(frame: "pd.DataFrame", paths: tuple[str, str]) -> tuple[str, str]:
    """Return what to call two runs: the ends of their paths, the paths where these are alike, or two steps of one."""
    first, second = (Path(path).name or path for path in paths)
    if first != second:
        return first, second
    if paths[0] != paths[1]:
        return paths
    steps = [int(frame[name].iloc[0]) for name in ("step_first", "step_second")]
    return (first, second) if steps[0] == steps[1] else (f"{first} at step {steps[0]}", f"{second} at step {steps[1]}")


def _most(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the matrices that differ most first: by their updates, or, where these are not known, by ΔD of rows."""
    by = "delta_d_row" if frame["relative"].isna().all() else "relative"
    return frame.sort_values(by, ascending=False, na_position="last", kind="stable")


def _same(frame: "pd.DataFrame", names: tuple[str, str]) -> str:
    of = (
        f"none of the {len(frame)} matrices in both differs" if len(frame) > 1 else "the matrix in both does not differ"
    )
    return f"{names[0]} and {names[1]}: {of}"


def _same_everywhere(frame: "pd.DataFrame") -> bool:
    """Whether the updates are the same but for rounding, or, where they are not known, the weights."""
    weights = frame[["delta_m_row", "delta_d_row"]].max(axis=1)
    return bool((frame["relative"].fillna(weights) <= SAME).all())


def _options(settings: Sequence[Sequence[str]], names: tuple[str, str], width: int, lines: int | None) -> list[str]:
    """Say in words what differs in options, in so many lines."""
    said: list[str] = []
    alone: dict[int, list[str]] = {0: [], 1: []}
    method = any(name == "method" for name, *_ in settings)
    for name, first, second in settings:
        last = name.rpartition(".")[2]
        word = WORDS.get(last, last.replace("_", " "))
        if lines is not None and method and last in SAID_BY_METHOD:
            continue
        if first and second:
            said.append(f"{word} {first} against {second}")
        elif lines is None or word in TELLING:
            alone[0 if first else 1].append(f"{word} {first or second}")
    said += [f"{', '.join(only)} only in {names[side]}" for side, only in alone.items() if only]
    if not said:
        return []
    begin = f"{names[0]} against {names[1]}: "
    if lines is None:
        return wrapped_lines(begin + "; ".join(said), width)
    for count in range(len(said), 0, -1):
        left = len(said) - count
        more = f"; … and {left} more, with --all" if left else ""
        cut = [text if len(text) <= width else f"{text[: width - 1]}…" for text in said[:count]]
        if len(wrapped := wrapped_lines(f"{begin}{'; '.join(cut)}{more}", width)) <= lines:
            break
    return wrapped


def _modules(frame: "pd.DataFrame", names: tuple[str, str], width: int) -> list[str]:
    """Say which modules only one of the two has."""
    lines = []
    for which, name in zip(("only_first", "only_second"), names, strict=True):
        if modules := frame.attrs[which]:
            lines += wrapped_lines(f"only in {name}: {modules_text(modules)}", width)
    return lines


def modules_text(modules: Sequence[str]) -> str:
    """Return modules in a few words: one by one, or how many of which kinds in which layers.

    Example:
        >>> modules_text(["a.0.up", "a.1.up", "a.2.up", "a.2.down"])
        '4 matrices: down, up of layers 0 to 2'
        >>> modules_text(["lm_head"])
        'lm_head'
    """
    if len(modules) <= NAMES:
        return ", ".join(modules)
    layers = sorted({layer for module in modules if (layer := layer_of(module)) is not None})
    kinds = sorted({kind_of(module) for module in modules})
    named = ", ".join(kinds[:8]) + (f" and {len(kinds) - 8} more kinds" if len(kinds) > 8 else "")
    if not layers:
        return f"{len(modules)} matrices: {named}"
    of = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
    return f"{len(modules)} matrices: {named} of {of}"


def _table(frame: "pd.DataFrame", shown: "pd.DataFrame", width: int) -> list[str]:
    """The matrices that differ most, in the fullest form that fits."""
    several = f"the {len(shown)} that differ most" if len(shown) < len(frame) else "all"
    first, second = (int(frame[name].iloc[0]) for name in ("step_first", "step_second"))
    at = f", step {first} against step {second}" if first or second else ""  # a folder of weights has no steps
    title = f"{several} of {len(frame)} matrices in both{at}"
    records = [{str(name): value for name, value in row.items()} for row in shown.to_dict("records")]
    for form in (_full, _short):
        rows = _filled([form(row) for row in records])
        text = fitted(rows, 10_000)
        wide = max(map(len, text.splitlines())) - max(len(row["module"]) for row in rows)
        if wide + min(24, max(len(row["module"]) for row in rows)) <= width:
            break
    lines = [title, *fitted(rows, width).splitlines()]
    return lines if form is _full else [*lines, *wrapped_lines(_chance(shown), width)] if _chance(shown) else lines


def _filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the columns that nothing is known of."""
    known = {name for row in rows for name, cell in row.items() if re.search(r"\d", str(cell)) or name == "module"}
    return [{name: cell for name, cell in row.items() if name in known} for row in rows]


def _full(row: dict[str, Any]) -> dict[str, Any]:
    """A matrix as a line of a wide terminal: numbers that belong together share a column."""
    line = {"module": row["module"], "difference": number(row["relative"])}
    line |= {"‖ΔW₁‖, ‖ΔW₂‖": _both(row["norm_first"], row["norm_second"])}
    line |= {"cosine": f"{number(row['cosine'])} (±{row['cosine_chance']:.1g})" if _known(row["cosine"]) else "–"}
    line |= {f"Δ{name.upper()}": _both(row[f"delta_{name}_row"], row[f"delta_{name}_column"]) for name in ("m", "d")}
    if "rank_first" in row:
        line |= {"rank": _both(row["rank_first"], row["rank_second"])}
        for name, unit in (("overlap", ""), ("angle", "°")):
            found, chance = row[f"{name}_right"], row[f"{name}_chance_right"]
            line |= {
                name: f"{angle(found) if unit else number(found)}{unit} ({number(chance)}{unit})"
                if _known(found)
                else "–"
            }
    return line


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """The same for 80 columns: rows alone, and chance in a line of its own."""
    line = {"module": row["module"], "differ": number(row["relative"]), "cosine": number(row["cosine"])}
    line |= {f"Δ{name.upper()} rows": number(row[f"delta_{name}_row"]) for name in ("m", "d")}
    if "rank_first" in row:
        line |= {"rank": _both(row["rank_first"], row["rank_second"]), "overlap": number(row["overlap_right"])}
        line |= {"angle": f"{angle(row['angle_right'])}°" if _known(row["angle_right"]) else "–"}
    return line


def _chance(shown: "pd.DataFrame") -> str:
    """What unrelated updates would have of these shapes."""
    parts = []
    for name, before, unit in (("cosine", "±", ""), ("overlap", "", ""), ("angle", "", "°")):
        column = "cosine_chance" if name == "cosine" else f"{name}_chance_right"
        if column not in shown or not len(values := shown[column].dropna()):
            continue
        ends = list(dict.fromkeys(number(value) for value in (values.min(), values.max())))
        parts.append(f"{name} {' to '.join(f'{before}{end}{unit}' for end in ends)}")
    return f"by chance: {', '.join(parts)}" if parts else ""


def _means(frame: "pd.DataFrame") -> list[str]:
    from deltaw.analysis.tables.whole_model import whole_cosine

    names = {"cosine": "cosine", "relative": "difference", "delta_m_row": "ΔM of rows", "delta_d_row": "ΔD of rows"}
    means = frame[list(names)].mean().dropna()
    found = []
    if len(means) and len(frame) > 1:
        found.append("mean over all: " + ", ".join(f"{names[str(name)]} {value:.3g}" for name, value in means.items()))
    whole = whole_cosine(frame)
    if _known(whole["cosine"]):
        found.append(
            f"all updates as one vector: cosine {whole['cosine']:.3g}, by chance ±{whole['cosine_chance']:.1g}"
        )
    return found


def _both(first: float, second: float) -> str:
    return f"{number(first)}, {number(second)}"


def _known(value: float) -> bool:
    return not math.isnan(value)


def number(value: float) -> str:
    """Return a number in two digits; a dash where it is not known."""
    return "–" if not _known(value) else f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def angle(value: float) -> str:
    """Return degrees; what rounding leaves of none is none."""
    return number(0.0 if abs(value) < 1e-5 else value)

"""A page a measure, from the docstring of its function and of what it returns."""

import importlib
import inspect
import re
from pathlib import Path
from typing import NamedTuple

from docstrings import SECTIONS, body, items, markdown, sections, signature

ROOT = Path(__file__).parent.parent.parent


class Note(NamedTuple):
    """What a docstring does not say of a measure: where to read on, what deceives, what chance gives."""

    section: str  # of docs/measures.md, as the anchor of its heading
    pitfalls: tuple[str, ...]
    chance: str = ""
    table: str = ""  # how a run's table of it is made
    figures: tuple[str, ...] = ()


# Every measure that deltaw.analysis hands on has an entry, and two more; tests/test_docs.py holds it complete.
MEASURES = {
    "change.change": Note(
        "magnitude-and-direction",
        (
            "Name the axis: DoRA's paper says columns, its code and PEFT's take rows.",
            "ΔM has the unit of the weights. Between matrices or models compare it with ‖W₀‖, or compare ΔD.",
            "Both are means of what is never negative: ΔM does not say whether vectors grew or shrank.",
            "ΔD near 0 cannot be told in float32 by 1 − cos(a, b) as it is written; here it is computed from b − a.",
        ),
        chance="An update of independent normal entries that is small, with ε = ‖ΔW‖_F/‖W₀‖_F, has ΔD = ε²/2 and"
        " ΔM = ε √(2/(πn)) times the mean norm of the vectors, each of n entries.",
        table='run.changes("base")',
        figures=("symmetry", "updates", "layers"),
    ),
    "change.changes": Note(
        "magnitude-and-direction",
        ("Both axes at once, from one pass over the matrices; as `change`.",),
        chance="As of `change`.",
        table='run.changes("consecutive")',
        figures=("symmetry", "distribution", "heatmap"),
    ),
    "correlation.correlation": Note(
        "how-they-go-together",
        (
            "The interval is one for independent points. Checkpoints of one matrix are not: it is too narrow.",
            "Pooled over layers and steps, r is positive as soon as everything moves further with every step. Look at r"
            " by step beside it.",
            "r says how well a line fits, not how steep it is.",
        ),
        chance="0 for unrelated ΔM and ΔD; of n independent points r lies within ±2/√n of it in 95 of 100 cases.",
        table='deltaw.correlation(run.changes("base"), by=["method", "axis"])',
        figures=("cloud", "animation"),
    ),
    "spectrum.spectrum": Note(
        "rank",
        (
            "The rank counts directions, however weak: trained magnitudes give full rank at once. Read the stable or"
            " the effective rank beside it.",
            "An update read off merged 16-bit weights carries their rounding: give `stored=` and `weight=`, or keep the"
            " factors.",
            "What lies below the noise floor is not blurred but lost: the rank is then too low, never too high.",
        ),
        chance="A matrix of independent normal entries has full rank, and for n × n a stable rank near n/4.",
        table="run.spectra(steps=run.steps[-1:])",
        figures=("rank", "singular-values", "effective-rank"),
    ),
    "subspace.directions": Note(
        "directions-of-two-updates",
        (
            "A vector's sign is arbitrary.",
            "Where singular values nearly agree, only the span of the whole group is determined.",
        ),
    ),
    "subspace.overlap": Note(
        "directions-of-two-updates",
        (
            "Two runs of one seed start from the same random A, and share most of its span before they learn anything.",
            "Compare two methods with two seeds of one method before reading anything into it.",
        ),
        chance="φ(i, j) = max(i, j)/n for random spans in n dimensions; in tables the column `expected`.",
        table="subspace_overlap(first, second)",
        figures=("overlap",),
    ),
    "subspace.principal_angles": Note(
        "directions-of-two-updates",
        ("In many dimensions random spans are nearly orthogonal: angles near 90° say nothing.",),
        chance="arccos √x of the zeros x of an expected characteristic polynomial; in tables the column `expected`.",
        table="subspace_angles(first, second)",
        figures=("angles",),
    ),
    "amplification.amplification": Note(
        "amplification",
        (
            "The factor compares all of ΔW with the part of W₀ in r directions. Where these hold a small share of ΔW,"
            " it is large without meaning anything: read `share` beside it.",
        ),
        chance="Random directions hold r·‖W‖_F / √(out·in) of W: `projected_random`.",
        table="amplification_table([run])",
        figures=("amplification",),
    ),
    "intruders.intruders": Note(
        "intruder-dimensions",
        (
            "The threshold is a choice: look at the lowest cosine beside the count.",
            "With a large k the vectors of crowded singular values come in, whose similarity falls at any change.",
        ),
        chance="A random vector in n dimensions has a largest cosine of about √(2 ln n / n) with n orthonormal ones.",
        table="intruder_table([run])",
        figures=("intruders",),
    ),
    "similarity.similarity": Note(
        "similarity-of-weights",
        ("Before and after fine-tuning it is 1 but for the last digits: use `dissimilarity`.",),
        chance="√(pq / ((n+p)(n+q))) for unrelated normal matrices of n examples, p and q features: ½ where square.",
        table="similarity_table([run])",
        figures=("similarity",),
    ),
    "similarity.dissimilarity": Note(
        "similarity-of-weights",
        ("It does not see a rotation of the features, nor a common factor.",),
        chance="One less what `similarity` has by chance: ½ for unrelated square matrices.",
        table="similarity_table([run])",
        figures=("similarity",),
    ),
    "alignment.alignment": Note(
        "directions-of-two-updates",
        (
            "The cosine weighs strong directions: two updates with one strong direction in common look alike whatever"
            " the rest does.",
        ),
        chance="0 ± 1/√(out·in) for updates of independent entries: the field `chance`.",
        table="deltaw.compare(first, second)",
    ),
    "principal_rotation.rotation": Note(
        "geometry",
        (
            "Where singular values are crowded at k, the smallest update turns the subspace: read `gap`, and compare"
            " with a random update of the same norm.",
            "The largest of k angles is one direction's. All are in `left_angles` and `right_angles`.",
            "Weights in 16 bits were rounded, and their rounding turns the subspaces, too.",
        ),
        chance="The largest angle of two random subspaces is near 90°; a random update of ‖ΔW‖_F turns W₀'s by"
        " `random_rotation`.",
        table='run.geometry(steps="last", k=16)',
        figures=("rotation",),
    ),
    "drift.spectral_drift": Note(
        "geometry",
        (
            "Singular values are compared by their place: two that change places count as two that moved little.",
            "It does not see a rotation, however large.",
        ),
        chance="Between 0 and ‖ΔW‖_F/‖W₀‖_F. A small random update has 1/√max(out, in) of the latter.",
        table='run.geometry(steps="last")',
    ),
    "off_principal_share.off_principal": Note(
        "geometry",
        (
            "A share near 1 is what any update has: compare it with chance, and k with the sizes of the matrix.",
            "The rounding of 16-bit weights is spread over all directions, and hides where a small update lies.",
        ),
        chance="1 − k²/(out·in) outside both, 1 − k/out outside the left, 1 − k/in outside the right subspace.",
        table='run.geometry(steps="last", k=16)',
        figures=("off-principal",),
    ),
    "visible.visible_changes": Note(
        "geometry",
        (
            "W₀ must be what training started from: a base in float32 that was trained in bfloat16 was rounded first.",
            "Read off float32 weights, the rule with a tolerance and what is stored are two different questions.",
        ),
    ),
    "visible.visible_share": Note(
        "geometry",
        (
            "The share grows with the learning rate and falls with the size of the weights: it says what the dtype lets"
            " through, not which weights an optimizer moved.",
            "In float32 nearly every weight of a fine-tuned matrix changes. Name the dtype beside the number.",
        ),
        chance="About the mean of |ΔW_ij| over the dtype's spacing at W₀_ij, for an update much smaller than that.",
        table='run.geometry(steps="last", measures=["visible"])',
        figures=("visible",),
    ),
    "alignment.update_cosine": Note(
        "agreement-of-two-updates",
        (
            "It weighs strong directions, and large entries: two updates with one strong direction in common look alike"
            " whatever the rest does. Read `sign_agreement` and `overlap_energy` beside it.",
            "Adapters of one seed start from the same random A: their updates share its span, and chance is then"
            " 1/√(out·r). Compare with another seed.",
            "Of a whole model take Σ⟨A, B⟩/√(Σ‖A‖² Σ‖B‖²) over its matrices, not the mean of their cosines.",
        ),
        chance="0 ± 1/√(out·in), whatever the ranks; of low ranks with longer tails, kurtosis 3 + 6/(d_A d_B).",
        table="update_agreement(runs)",
    ),
    "signs.sign_agreement": Note(
        "agreement-of-two-updates",
        (
            "Every entry counts the same, however small: noise in weights that hardly moved pulls it to ½.",
            "Zeros agree with zeros: two sparse updates agree in what neither touches. Compare with `sign_expected`.",
        ),
        chance="½ ± 1/(2√(out·in)) without zeros; else Σ_s p_s q_s with the shares of the three signs.",
        table="update_agreement(runs)",
    ),
    "energy.overlap_energy": Note(
        "agreement-of-two-updates",
        (
            "It is not symmetric: name which update gives the directions.",
            "k at the rank of a low-rank update takes all of its span; compare methods at one k.",
        ),
        chance="k/out, k/in and k²/(out·in); the spread is `OverlapEnergy.spread`.",
        table="update_agreement(runs, k=8)",
    ),
    "masks.mask_agreement": Note(
        "agreement-of-two-updates",
        (
            "Two runs that change most weights agree by chance: read `expected` beside it, always.",
            "Above `expected` it may still be whole rows or columns that both change more; `expected_rows` and"
            " `expected_columns` tell.",
            "Name the dtype: in float32 nearly all weights change, and J is near 1 for any two runs.",
        ),
        chance="p q/(p + q − p q) for independent masks that hold the shares p and q.",
        table='update_agreement(runs, visible="bfloat16")',
    ),
    "entropy.spectral_entropy": Note(
        "growth-of-the-spectrum",
        (
            "Papers take p = σ/Σσ or p = σ²/Σσ², and some do not say: name the one that is meant.",
            "An update of rank r reaches log r/log m at most, so LoRA lies below full fine-tuning by its rank alone.",
            "Noise of rounded weights is spread evenly and raises it: leave out what is below the tolerance.",
        ),
        chance="Near 1 for a matrix of independent normal entries: 0.97 (q = 1) and 0.92 (q = 2) at 768 × 768.",
        table="spectral_growth([run])",
        figures=("growth",),
    ),
    "survival.survival": Note(
        "rank",
        ("It needs the exact update: one that was read off merged weights has been through the rounding already.",),
    ),
}


def pages() -> dict[str, str]:
    """Return the pages by their place, the list of them first."""
    lines = ["# All measures\n", "What is computed, of which matrices, and what it would be by chance.\n"]
    lines += ["| measure | |", "|---|---|"]
    for path in MEASURES:
        lines.append(f"| [`{path.split('.')[1]}`]({slug(path)}.md) | {summary(path)} |")
    lines += [
        "",
        "How they are computed, their error bounds, and what a table leaves out: [measures](../measures.md).",
        "",
    ]
    lines += ["```{toctree}", ":hidden:", "", *map(slug, MEASURES), "```", ""]
    return {"measures/index.md": "\n".join(lines)} | {f"measures/{slug(path)}.md": page(path) for path in MEASURES}


def slug(path: str) -> str:
    """The file name of a measure's page."""
    return path.split(".")[1].replace("_", "-")


def summary(path: str) -> str:
    """The first sentence of the docstring."""
    return body(" ".join(sections(_function(path).__doc__ or "")[""].split("\n\n")[0].split())).removeprefix("Return ")


def page(path: str) -> str:
    """Return a measure's page: formula and conventions, then pitfalls, chance, arguments, result, source, example."""
    function, note = _function(path), MEASURES[path]
    name = path.split(".")[1]
    found = sections(function.__doc__ or "")
    lines = [f"# `{name}`\n", body(found[""]), ""]
    lines += ["## Pitfalls\n", *(f"- {one}" for one in note.pitfalls), ""]
    if note.chance:
        lines += ["## By chance\n", note.chance, ""]
    lines += ["## Call\n", f"```python\n{_home(path)}\n\n{name}{signature(function, 90)}\n```\n"]
    for section in SECTIONS:
        if section not in found or section in ("Source", "Example"):
            continue
        lines.append(f"### {section}\n")
        if section == "Returns":
            lines += [body(found[section]), "", *_result(path, found[section])]
        else:
            lines += [f"- `{one}`: {said}" if one else f"- {said}" for one, said in items(found[section])]
        lines.append("")
    if "Example" in found:
        lines += ["## Example\n", f"```python\n{found['Example']}\n```\n"]
    if note.table:
        lines += ["## Of a recorded run\n", f"```python\n{note.table}\n```\n"]
    if note.figures:
        lines += ["Figures: " + ", ".join(f"[{one}](../gallery/{one}.md)" for one in note.figures) + ".\n"]
    lines += ["## Source\n", body(found.get("Source", "deltaw.")), ""]
    lines.append(f"More: [the measures](../measures.md#{note.section}).\n")
    return "\n".join(lines)


def _function(path: str):
    module, name = path.split(".")
    return getattr(importlib.import_module(f"deltaw.analysis.measures.{module}"), name)


def _home(path: str) -> str:
    """The import of a measure: from where it is handed on, if it is."""
    module, name = path.split(".")
    stub = (ROOT / "analysis" / "__init__.pyi").read_text(encoding="utf-8")
    handed = re.search(rf"import {name} as {name}$", stub, re.MULTILINE)
    return f"from deltaw.analysis{'' if handed else f'.measures.{module}'} import {name}"


def _result(path: str, text: str) -> list[str]:
    """What a class that is returned holds, where the docstring names one of its module."""
    module = importlib.import_module(f"deltaw.analysis.measures.{path.split('.', maxsplit=1)[0]}")
    lines: list[str] = []
    for name in re.findall(r"`([A-Z]\w+)`", text):
        kind = getattr(module, name, None)
        if inspect.isclass(kind):
            lines += [f"#### {name}\n", markdown(kind.__doc__, 0), ""]
            for key, member in vars(kind).items():
                if isinstance(member, property) and not key.startswith("_"):
                    lines.append(f"- `{key}`: {' '.join(body(inspect.getdoc(member) or '').split())}")
    return lines

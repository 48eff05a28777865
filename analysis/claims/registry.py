"""The measures by name: what a pack's claims may be about. Reading a pack loads neither pandas nor torch for it."""

from collections.abc import Mapping
from typing import Any

from deltaw.analysis.claims.arguments import WrongArgumentError, flag, number, one_of, some_of, table_of, text
from deltaw.analysis.claims.measuring import Measure, Need, of_methods

COSTS = ("trainable", "seconds_per_epoch", "peak_megabytes")
GEOMETRY_COLUMNS = (
    *("rotation_left", "rotation_right", "drift", "off_principal", "visible_bfloat16", "visible_path_not_taken"),
)
QUANTITIES = ("delta_m", "delta_d")
AXES = ("row", "column", "matrix", "head", "expert", "entry")
PAIRS = ("consecutive", "initial", "base")

_METHOD = text(takes="a method")
_OTHER = text(None, takes="a method")
_QUANTITY = one_of(*QUANTITIES)
_COST = one_of(*COSTS)
_SCORE = text("any", takes="a score: mcc, vqa, gqa, nlvr, caption, mean (of the last four), any (whatever it is)")
_PART = table_of(method=_METHOD, axes=some_of(*AXES, default=("row", "column")))
_GROUP = table_of(
    method=_METHOD,
    group=one_of("update", "magnitude", "direction", default="update"),
    column=one_of("rank", "full_rank", "adapter_rank", default="rank"),
)
_TIMES = number(1.0)
_KIND = text(None, takes="a kind of matrix, as query")


def _found(name: str) -> str:
    return f"deltaw.analysis.claims.finding:{name}"


def _changes_needed(pairs: str, over: Mapping[str, Any], under: Mapping[str, Any], kind: str | None, **_: Any) -> Any:
    if kind is not None and pairs != "base":
        raise WrongArgumentError("kind", 'is for pairs = "base"; from step to step and since the start it is one kind')
    methods = tuple(dict.fromkeys(part["method"] for part in (over, under)))
    axes = tuple(axis for axis in AXES if axis in (*over["axes"], *under["axes"]))
    return (Need(pairs, methods, () if kind is None else (kind,), axes),)


def _cloud_needed(*names: str) -> Any:
    def needs(kind: str | None, axis: str, **given: Any) -> tuple[Need, ...]:
        methods = tuple(dict.fromkeys(given[name] for name in names if given[name] is not None))
        return (Need("base", methods, () if kind is None else (kind,), (axis,)),)

    return needs


def _geometry_needed(*names: str) -> Any:
    def needs(column: str, **given: Any) -> tuple[Need, ...]:
        return (Need("geometry", tuple(dict.fromkeys(given[name] for name in names)), columns=(column,)),)

    return needs


_CLOUD = {"kind": _KIND, "axis": one_of(*AXES), "method": _METHOD}
_GEOMETRY = one_of(*GEOMETRY_COLUMNS)
_PARAMETERS = {"cost": _COST, "over": _METHOD, "under": _METHOD}

MEASURES: dict[str, Measure] = {
    "asymmetry": Measure(
        "A of a method's ΔM or ΔD in rows and columns; with minus, how much larger it is than another's",
        _found("asymmetry"),
        {"pairs": one_of("consecutive", "initial"), "quantity": _QUANTITY, "method": _METHOD, "minus": _OTHER},
        lambda pairs, **given: of_methods(pairs, "method", "minus")(**given),
    ),
    "change ratio": Measure(
        "ΔM or ΔD of one method over another's: the mean from step to step, or of the last step that both have",
        _found("changes"),
        {"pairs": one_of(*PAIRS), "quantity": _QUANTITY, "over": _PART, "under": _PART, "kind": _KIND},
        _changes_needed,
    ),
    "correlation": Measure(
        "r of ΔD with ΔM from the base, over matrices and four steps; with minus, less another method's",
        _found("correlation"),
        {**_CLOUD, "minus": _OTHER},
        _cloud_needed("method", "minus"),
    ),
    "slope": Measure(
        "the slope of ΔM on ΔD of the same points as r; with minus, less another method's",
        _found("slope"),
        {**_CLOUD, "minus": _OTHER},
        _cloud_needed("method", "minus"),
    ),
    "nearer correlation": Measure(
        "how much nearer a method's r is to that of another than a third's is",
        _found("nearer_correlation"),
        {**_CLOUD, "to": _METHOD, "than": _METHOD},
        _cloud_needed("method", "to", "than"),
    ),
    "score": Measure(
        "the difference of two methods' scores, the second at `times` the rank of the first and `more`",
        _found("score"),
        {
            "score": _SCORE,
            "better": _METHOD,
            "worse": _METHOD,
            "times": _TIMES,
            "more": number(0, whole=True),
            "any_rank": flag(False),
            "paper": number(None),
        },
    ),
    "score by rank": Measure(
        "the difference of two methods' scores at every rank at which they can be compared",
        _found("score_by_rank"),
        {"score": _SCORE, "better": _METHOD, "worse": _METHOD, "times": _TIMES},
    ),
    "score gain": Measure(
        "how much higher a method scores at its highest rank than at its lowest",
        _found("gain"),
        {"method": _METHOD},
    ),
    "score widening": Measure(
        "how much further a method is above another at the lowest rank than at the highest",
        _found("widening"),
        {"better": _METHOD, "worse": _METHOD},
    ),
    "ratio": Measure(
        "parameters, seconds per epoch or peak memory of one method over another's at the same rank",
        _found("ratio"),
        _PARAMETERS,
    ),
    "ratio by rank": Measure(
        "the same at every rank at which they can be compared",
        _found("ratio_by_rank"),
        {**_PARAMETERS, "times": _TIMES},
    ),
    "moved vectors": Measure(
        "the share of matrices in which exactly r rows or columns of ΔW are not zero",
        _found("moved"),
        {"method": _METHOD, "axis": one_of("row", "column")},
        of_methods("regions", "method"),
    ),
    "untouched share": Measure(
        "how far the share of entries of ΔW that are zero is from 1 − r/in or 1 − r/out",
        _found("untouched"),
        {"method": _METHOD, "side": one_of("in", "out")},
        of_methods("regions", "method"),
    ),
    "update rank": Measure(
        "the ratio of two ranks in every layer: of ΔW or a group of it, the full rank, or the adapter's r",
        _found("update_rank"),
        {"over": _GROUP, "under": _GROUP, "trained": flag(True)},
        of_methods("spectra", "over", "under"),
    ),
    "parameters by split": Measure(
        "Dual LoRA's trainable parameters over another method's at every r₁ : r₂ that sums to its rank",
        _found("split_parameters"),
        {"other": _METHOD},
    ),
    "scores by split": Measure(
        "Dual LoRA's score less another method's at every r₁ : r₂ that sums to its rank",
        _found("split_scores"),
        {"other": _METHOD},
    ),
    "geometry ratio": Measure(
        "a number of the geometry table, averaged over matrices at the last step, of one method over another's",
        _found("geometry"),
        {"column": _GEOMETRY, "over": _METHOD, "under": _METHOD},
        _geometry_needed("over", "under"),
    ),
    "beside chance": Measure(
        "a number of the geometry table over what a random update of the same size has",
        _found("chance"),
        {"column": one_of("rotation_left", "rotation_right", "off_principal"), "method": _METHOD},
        _geometry_needed("method"),
    ),
    "intruders": Measure(
        "the intruder dimensions among the ten leading singular vectors, a matrix; with minus, less another method's",
        _found("intruders"),
        {"method": _METHOD, "minus": _OTHER},
        of_methods("intruders", "method", "minus"),
    ),
    "intruder gain": Measure(
        "how many more intruder dimensions a method has at its highest rank than at its lowest",
        _found("gain_of_intruders"),
        {"method": _METHOD},
        of_methods("intruders", "method"),
    ),
    "distance growth": Measure(
        "‖ΔW‖ at the end over that half way; with under, over the same of another method",
        _found("growth"),
        {"method": _METHOD, "under": _OTHER},
        of_methods("distances", "method", "under"),
    ),
}

"""Live numbers: ΔM and ΔD of the step just recorded, the same that the record's own tables will give."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean

import torch
from torch import Tensor

from deltaw.adapters.layer import WIDENED
from deltaw.adapters.method import Method
from deltaw.analysis.measures.built import Built, built_sums
from deltaw.analysis.measures.change import AXES, Axis, Change, PairChanges, changes
from deltaw.analysis.names import kind_of

Numbers = dict[str, float]
Log = Callable[[Numbers, int], object]  # as wandb.log, trackio.log, accelerator.log and Lightning's log_metrics are
PREFIXES = ("delta_m/", "delta_d/")


def live_changes(
    methods: Mapping[str, Method | None],
    base: Callable[[str], Mapping[str, Tensor]],
    before: Mapping[str, Tensor] | None,
    now: Mapping[str, Tensor],
) -> Numbers:
    """Return the mean ΔM and ΔD of the modules of each kind, from the checkpoint before and from W₀.

    Vectors with NaN or infinity are left out: a measure is no reason to stop a training.

    Arguments:
        methods: The modules, and the method that W' follows from, or ``None``.
        base: Returns for a module ``""``: W₀, and under their names the method's tensors that never change.
        before, now: What two checkpoints hold, by ``MODULE.NAME``; ``before`` is ``None`` at the first.

    Returns:
        {"delta_m/consecutive/query/row": …, "delta_d/base/value/column": …}; "consecutive" is missing at the first.

    Example:
        >>> W = torch.eye(2)
        >>> live_changes({"query": None}, lambda _: {"": W}, None, {"query.weight": 2 * W})["delta_m/base/query/row"]
        1.0
    """
    found: dict[str, list[float]] = defaultdict(list)
    for module, method in methods.items():
        constant = base(module)
        states = {"consecutive": before} if before is not None else {}
        for pair, change_of in _changes(module, method, constant, states, now).items():
            for axis, change in change_of.items():
                place = f"{pair}/{kind_of(module)}/{axis}"
                found[f"delta_m/{place}"].append(change.delta_m)
                found[f"delta_d/{place}"].append(change.delta_d)
    return {name: fmean(values) for name, values in found.items()}


def _changes(
    module: str,
    method: Method | None,
    base: Mapping[str, Tensor],
    before: Mapping[str, Mapping[str, Tensor]],
    now: Mapping[str, Tensor],
) -> dict[str, dict[Axis, Change]]:
    """Return the changes since W₀ and since the states by name, made as the tables make them."""
    W = base[""]
    if method is None:
        origins = {"base": W} | {name: state[f"{module}.weight"] for name, state in before.items()}
        after = now[f"{module}.weight"]
        return {name: changes(origin, after, allow_nonfinite=True) for name, origin in origins.items()}
    states = [_state(module, method, base, state) for state in (*before.values(), now)]
    narrow = W.to(WIDENED.get(W.dtype, W.dtype)).contiguous()
    with torch.no_grad():
        forms = [form for state in states if (form := method.scaled_low_rank(narrow, state)) is not None]
        if not forms:
            dense = [method.weight(W.double(), state) for state in states]
            origins = {"base": W.double()} | dict(zip(before, dense, strict=False))
            return {name: changes(origin, dense[-1], allow_nonfinite=True) for name, origin in origins.items()}
    built = [Built(narrow, form) for form in forms]
    places = {"base": -1} | {name: place for place, name in enumerate(before)}
    found = built_sums(narrow, forms, [(place, len(forms) - 1) for place in places.values()])
    pairs = PairChanges([(narrow if place < 0 else built[place], built[-1]) for place in places.values()], found)
    return {name: pairs.of(number, AXES, allow_nonfinite=True) for number, name in enumerate(places)}


def _state(module: str, method: Method, base: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a method's tensors, widened to float64."""
    names = method.shapes(*base[""].shape) | method.frozen_shapes(*base[""].shape)
    tensors = {key: state[f"{module}.{key}"] if f"{module}.{key}" in state else base[key] for key in names}
    return {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}

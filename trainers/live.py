"""Live numbers: ΔM and ΔD of the step just recorded, the same that the record's own tables will give."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean

import torch
from torch import Tensor

from deltaw.adapters.method import Method
from deltaw.analysis.measures.change import changes
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
        after = _weight(module, method, constant, now)
        pairs = {"base": constant[""] if method is None else constant[""].double()}
        if before is not None:
            pairs["consecutive"] = _weight(module, method, constant, before)
        for pair, origin in pairs.items():
            for axis, change in changes(origin, after, allow_nonfinite=True).items():
                place = f"{pair}/{kind_of(module)}/{axis}"
                found[f"delta_m/{place}"].append(change.delta_m)
                found[f"delta_d/{place}"].append(change.delta_d)
    return {name: fmean(values) for name, values in found.items()}


def _weight(module: str, method: Method | None, base: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
    """W' as the tables have it: in float64 where it is made from a method's tensors, else as it is recorded."""
    if method is None:
        return state[f"{module}.weight"]
    names = method.shapes(*base[""].shape) | method.frozen_shapes(*base[""].shape)
    tensors = {key: state[f"{module}.{key}"] if f"{module}.{key}" in state else base[key] for key in names}
    wide = {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}
    with torch.no_grad():
        return method.weight(base[""].double(), wide)

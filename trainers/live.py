"""Live numbers of the step just recorded: ΔM and ΔD, the same that the record's own tables will give, and norms."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from deltaw.adapters.layer import WIDENED
from deltaw.adapters.method import Method
from deltaw.analysis.measures.built import Built, built_sums
from deltaw.analysis.measures.change import AXES, Axis, Change, PairChanges, changes_of_sums
from deltaw.analysis.measures.norms import spectral_norm
from deltaw.analysis.measures.sums import Side, Sums, sums
from deltaw.analysis.names import kind_of
from deltaw.trainers.alarms import Alarms, State

Numbers = dict[str, float]
Log = Callable[[Numbers, int], object]  # as wandb.log, trackio.log, accelerator.log and Lightning's log_metrics are
PREFIXES = ("delta_m/", "delta_d/", "norm/", "update/", "stable_rank/")


class LiveNumbers:
    """Measures every recorded step of a run, and raises the alarms of ``trainers.alarms``.

    Arguments:
        total_steps: The last step of the training, where it is known.

    Attributes:
        alarms: What was said at the step measured last, or at the end.
    """

    def __init__(self, total_steps: int | None = None) -> None:
        self._alarms = Alarms(total_steps)
        self.alarms: list[str] = []

    def end(self) -> None:
        """Sound the alarms that can only be told from the end."""
        self.alarms = self._alarms.end()

    def measure(
        self,
        step: int,
        methods: Mapping[str, Method | None],
        base: Callable[[str], Mapping[str, Tensor]],
        before: Mapping[str, Tensor] | None,
        now: Mapping[str, Tensor],
    ) -> Numbers:
        """Return the means over the modules of each kind, and sound the alarms.

        Vectors with NaN or infinity are left out: a measure is no reason to stop a training.

        Arguments:
            step: For the alarms.
            methods: The modules, and the method that W' follows from, or ``None``.
            base: Returns for a module ``""``: W₀, and under their names the method's tensors that never change.
            before, now: What two checkpoints hold, by ``MODULE.NAME``; ``before`` is ``None`` at the first.

        Returns:
            {"delta_m/consecutive/query/row": …, "delta_d/base/value/column": …, "norm/query": ‖W'‖_F, "update/query":
            ‖ΔW‖_F/‖W₀‖_F, "stable_rank/query": ‖ΔW‖_F²/‖ΔW‖₂² …}; "consecutive" is missing at the first, the stable
            rank where the update is zero.

        Example:
            >>> W = torch.eye(2)
            >>> found = LiveNumbers().measure(1, {"query": None}, lambda _: {"": W}, None, {"query.weight": 2 * W})
            >>> found["delta_m/base/query/row"], found["update/query"], round(found["stable_rank/query"], 9)
            (1.0, 1.0, 2.0)
        """
        found: dict[str, list[float]] = defaultdict(list)
        seen = {}
        for module, method in methods.items():
            kind = kind_of(module)
            seen[module] = one = _measured(module, method, base(module), before, now)
            for pair, change_of in one.changes.items():
                for axis, change in change_of.items():
                    found[f"delta_m/{pair}/{kind}/{axis}"].append(change.delta_m)
                    found[f"delta_d/{pair}/{kind}/{axis}"].append(change.delta_d)
            for name in ("norm", "update", "stable_rank"):
                value: float | None = getattr(one, name)
                if value is not None:
                    found[f"{name}/{kind}"].append(value)
        self.alarms = self._alarms.check(step, {name: one.state() for name, one in seen.items()})
        return {name: fmean(values) for name, values in found.items()}


@dataclass(frozen=True, eq=False)
class _Measured:
    """What is seen of a module at a step: its changes, and how large its weights and its update are."""

    changes: dict[str, dict[Axis, Change]]
    stored: torch.dtype
    first: float  # ‖W₀‖_F
    norm: float  # ‖W'‖_F
    update: float | None  # ‖ΔW‖_F/‖W₀‖_F
    stable_rank: float | None
    vector: dict[Axis, float]  # the mean norm of a row and of a column of W₀
    turns: bool

    def state(self) -> State:
        """Return what the alarms look at."""
        moved = [
            (change.delta_m / self.vector[axis], math.sqrt(max(0.0, 2 * change.delta_d)))
            for axis, change in self.changes["base"].items()
            if self.vector[axis] > 0 and math.isfinite(change.delta_d)
        ]
        longer, turned = max(moved, default=(0.0, 0.0))
        return State(self.update, self.stable_rank, longer, turned, self.stored, self.turns)


def _measured(
    module: str,
    method: Method | None,
    base: Mapping[str, Tensor],
    before: Mapping[str, Tensor] | None,
    now: Mapping[str, Tensor],
) -> _Measured:
    states = {"consecutive": before} if before is not None else {}
    found, sums, update = _changes(module, method, base, states, now)
    aa, ad, dd = (float(part.sum()) for part in sums["row"])
    first, moved = math.sqrt(aa), math.sqrt(dd) if dd >= 0 else math.nan
    vector: dict[Axis, float] = {axis: float(of.aa.sqrt().mean()) for axis, of in sums.items()}
    finite = math.isfinite(dd) and math.isfinite(aa)
    return _Measured(
        changes=found,
        stored=base[""].dtype,
        first=first,
        norm=math.sqrt(max(0.0, aa + 2 * ad + dd)) if finite else math.nan,
        update=moved / first if first > 0 else None,
        stable_rank=_stable_rank(update, moved) if finite and moved > 0 else None,
        vector=vector,
        turns=method is None or method.turns,
    )


def _stable_rank(update: Callable[[], Tensor | tuple[Tensor, Tensor]], moved: float) -> float:
    """‖ΔW‖_F²/‖ΔW‖₂², from factors exactly, else with ‖ΔW‖₂ to a percent."""
    found = update()
    if isinstance(found, tuple):
        left, right = (torch.linalg.qr(tall, mode="r").R for tall in (found[0], found[1].T))
        return (moved / float(torch.linalg.matrix_norm(left @ right.T, 2))) ** 2
    return (moved / spectral_norm(found)) ** 2


def _changes(
    module: str,
    method: Method | None,
    base: Mapping[str, Tensor],
    before: Mapping[str, Mapping[str, Tensor]],
    now: Mapping[str, Tensor],
) -> tuple[dict[str, dict[Axis, Change]], dict[Side, Sums], Callable[[], Tensor | tuple[Tensor, Tensor]]]:
    """Return the changes since W₀ and since the states by name, made as the tables make them; the sums since W₀; ΔW."""
    W = base[""]
    if method is None:
        origins = {"base": W} | {name: state[f"{module}.weight"] for name, state in before.items()}
        return _of_dense(origins, now[f"{module}.weight"])
    states = [_state(module, method, base, state) for state in (*before.values(), now)]
    narrow = W.to(WIDENED.get(W.dtype, W.dtype)).contiguous()
    with torch.no_grad():
        forms = method.scaled_low_ranks(narrow, states)
        if forms is None:
            dense = [method.weight(W.double(), state) for state in states]
            return _of_dense({"base": W.double()} | dict(zip(before, dense, strict=False)), dense[-1])
    built = [Built(narrow, form) for form in forms]
    places = {"base": -1} | {name: place for place, name in enumerate(before)}
    found = built_sums(narrow, forms, [(place, len(forms) - 1) for place in places.values()])
    pairs = PairChanges([(narrow if place < 0 else built[place], built[-1]) for place in places.values()], found)
    changed = {name: pairs.of(number, AXES, allow_nonfinite=True) for number, name in enumerate(places)}

    def update() -> Tensor | tuple[Tensor, Tensor]:
        with torch.no_grad():
            wide = W.double()
            return method.factors(wide, states[-1]) or method.weight(wide, states[-1]) - wide

    return changed, {axis: Sums(*(part[0] for part in of)) for axis, of in found.items()}, update


def _of_dense(
    origins: Mapping[str, Tensor], after: Tensor
) -> tuple[dict[str, dict[Axis, Change]], dict[Side, Sums], Callable[[], Tensor]]:
    found = {name: sums(origin, after, AXES) for name, origin in origins.items()}
    changed = {
        name: changes_of_sums(origin, after, found[name], allow_nonfinite=True) for name, origin in origins.items()
    }
    return changed, found["base"], lambda: after.double() - origins["base"].double()


def _state(module: str, method: Method, base: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a method's tensors, widened to float64."""
    names = method.shapes(*base[""].shape) | method.frozen_shapes(*base[""].shape)
    tensors = {key: state[f"{module}.{key}"] if f"{module}.{key}" in state else base[key] for key in names}
    return {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}

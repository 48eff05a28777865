"""Alarms while a run is recorded with live numbers: what mostly means that something is wrong.

Each is raised once a run, as a line of the log and as an alert of the tracker that is at work (W&B, trackio):

- "never moved": an adapter whose update is still exactly zero at its fourth recorded step.
- "magnitudes ran ahead": since W₀ the vectors of a matrix became longer or shorter by a twentieth or more, and by five
  times as much as they turned (ΔM over their mean norm, against √(2 ΔD), the angle in radians where it is small). It is
  not said of a method that trains nothing else.
- "one direction": an update that had a stable rank of 2 or more has less than 1.1, and grew to twice its size or more
  since the record before: one direction took over, as after a spike of the loss.
- "lost in merging": W₀ is kept in 16 bits, and ‖ΔW‖/‖W₀‖ is below an eighth of its precision: nearly every entry of W₀
  stays as it is when the update is merged. Every update begins so small: it is looked at in the second half of a
  training whose length is known; else once it has stopped growing, and when the recorder closes.
- "not finite": NaN or infinity in W' or W₀.
"""

import contextlib
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

STILL = 4  # recorded steps
LONGER, AHEAD = 0.05, 5.0
BEFORE, COLLAPSED, GROWN = 2.0, 1.1, 2.0
LOST = 1 / 8  # of the precision of W₀'s dtype
SETTLED, GROWS = 4, 1.25  # recorded steps, and how much larger than half as many before an update is that still grows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """A module at a recorded step.

    Arguments:
        update: ‖ΔW‖_F/‖W₀‖_F; ``None`` where W₀ is zero.
        stable_rank: ‖ΔW‖_F²/‖ΔW‖₂²; ``None`` for an update of zeros.
        longer: ΔM since W₀ over the mean norm, along the axis where it is larger.
        turned: √(2 ΔD) along that axis.
        stored: The dtype of W₀.
        turns: Whether the method can turn the vectors, and not only make them longer or shorter.
    """

    update: float | None
    stable_rank: float | None
    longer: float
    turned: float
    stored: torch.dtype
    turns: bool = True


class Alarms:
    """Looks at every recorded step, and says what is new.

    Arguments:
        total: The last step of the training, where it is known.
    """

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._raised: set[str] = set()
        self._recorded = self._step = 0
        self._before: Mapping[str, State] = {}
        # Updates at the last two of the 1st, 2nd, 4th, 8th, … record: of all, a long run would keep too many.
        self._earlier: list[dict[str, float | None]] = []

    def check(self, step: int, states: Mapping[str, State]) -> list[str]:
        """Sound the alarms of a step, and return their texts.

        Arguments:
            step: The step.
            states: By module.
        """
        self._recorded += 1
        self._step = step
        late = self._total is not None and 2 * step >= self._total
        found: dict[str, list[tuple[str, str]]] = {}
        for module, state in states.items():
            before = self._before.get(module)
            for title, why in self._alarms(state, before):
                found.setdefault(title, []).append((module, why))
            if late or (self._total is None and self._has_settled(module, state)):
                found |= _joined(found, module, _lost(state))
        self._before = states
        if self._recorded.bit_count() == 1:  # a power of two
            self._earlier = [*self._earlier[-1:], {module: state.update for module, state in states.items()}]
        return self._sound(step, found)

    def end(self) -> list[str]:
        """Sound what can only be said at the end; return the texts."""
        found: dict[str, list[tuple[str, str]]] = {}
        for module, state in (self._before if self._recorded > 1 else {}).items():
            found |= _joined(found, module, _lost(state))
        return self._sound(self._step, found) if found else []

    def _has_settled(self, module: str, state: State) -> bool:
        """Whether an update grew by less than a quarter since half as many steps were recorded, or fewer."""
        if self._recorded < SETTLED:
            return False
        power = self._recorded.bit_count() == 1  # then this step is not among the earlier ones yet
        then = self._earlier[-1 if power else 0].get(module)
        return then is None or state.update is None or state.update < GROWS * then

    def _sound(self, step: int, found: Mapping[str, list[tuple[str, str]]]) -> list[str]:
        texts = []
        for title, modules in found.items():
            if title in self._raised:
                continue
            self._raised.add(title)
            (first, why), others = modules[0], len(modules) - 1
            more = f", and {others} more" if others else ""
            texts.append(f"step {step}: {title}: {first}{more}: {why}")
            logger.warning("%s", texts[-1])
            _alert(title, texts[-1])
        return texts

    def _alarms(self, state: State, before: State | None) -> Iterator[tuple[str, str]]:
        update = state.update
        if update is not None and not math.isfinite(update):
            yield "not finite", "NaN or infinity in its weights; see deltaw inspect"
            return
        if update == 0:
            if self._recorded == STILL:
                yield "never moved", "its update is still zero; is it trained, and is its learning rate above 0?"
            return
        if state.turns and state.longer >= LONGER and state.longer >= AHEAD * state.turned:
            yield (
                "magnitudes ran ahead",
                f"ΔM is {state.longer:.2g} of the norms, and the angle only {state.turned:.2g}",
            )
        if (
            before is not None
            and None not in (state.stable_rank, before.stable_rank, update, before.update)
            and before.stable_rank >= BEFORE  # type: ignore[operator]
            and state.stable_rank < COLLAPSED  # type: ignore[operator]
            and update >= GROWN * before.update  # type: ignore[operator]
        ):
            yield "one direction", f"its stable rank fell from {before.stable_rank:.3g} to {state.stable_rank:.3g}"


def _joined(
    found: Mapping[str, list[tuple[str, str]]], module: str, why: str | None
) -> dict[str, list[tuple[str, str]]]:
    title = "lost in merging"
    return {} if why is None else {title: [*found.get(title, []), (module, why)]}


def _lost(state: State) -> str | None:
    """Why an update would be lost in the precision that W₀ is kept in; ``None`` where it would not."""
    if state.stored not in (torch.bfloat16, torch.float16) or not state.update:
        return None
    precision = torch.finfo(state.stored).eps
    if not state.update < LOST * precision:
        return None
    kept = str(state.stored).removeprefix("torch.")
    return f"‖ΔW‖/‖W₀‖ is {state.update:.2g}, and {kept} keeps {precision:.2g}; merge in float32"


def _alert(title: str, text: str) -> None:
    """Hand an alarm to the tracker that has a run open; what it answers is no reason to stop a training."""
    with contextlib.suppress(Exception):
        run = getattr(sys.modules.get("wandb"), "run", None)
        if run is not None:
            run.alert(title=f"deltaw: {title}", text=text)
    with contextlib.suppress(Exception):
        trackio = sys.modules.get("trackio")
        if trackio is not None and trackio.context_vars.current_run.get() is not None:
            trackio.alert(title=f"deltaw: {title}", text=text)

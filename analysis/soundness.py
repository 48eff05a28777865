"""Is a run sound: is it finite, did it train, is the base its own, does the update survive merging?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from deltaw.adapters import DualLoRA
from deltaw.analysis.precision import survival
from deltaw.analysis.trajectory import Trajectory

Level = Literal["broken", "warning"]

EXPLODED = 10.0  # ‖W_t‖ / ‖W₀‖ from which on weights have left what they were
STARTED = 1e-3  # ‖W'−W₀‖ / ‖W₀‖ up to which an untrained adapter counts as the identity
FOREIGN = 0.5  # median |m / ‖w‖ − 1| above which magnitudes were not taken from this base


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a run.

    Arguments:
        level: "broken" where no result can be trusted, "warning" where a reader must know.
        check: The check's name.
        module: The module, or "" for the run.
        step: The first step at which it shows, or ``None``.
        message: What was seen, and what it usually means.
    """

    level: Level
    check: str
    module: str
    step: int | None
    message: str


@dataclass(frozen=True)
class Soundness:
    """What the checks came to.

    Arguments:
        findings: What is wrong; empty where nothing is.
        steps: The steps that were looked at.
        precision: One row a module and dtype at the last step, with the columns module, layer, kind, step, dtype,
            entries, error; see `survival`. Empty where the base is not known.
    """

    findings: list[Finding]
    steps: list[int]
    precision: pd.DataFrame

    @property
    def broken(self) -> bool:
        """Whether there is a finding of level "broken"."""
        return any(finding.level == "broken" for finding in self.findings)


def soundness(
    run: Trajectory,
    *,
    every_step: bool = False,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16),
    progress: bool = False,
) -> Soundness:
    """Check a run for what usually goes wrong in training, one matrix at a time.

    - "finite": a tensor holds NaN or infinity (broken).
    - "moved": a module's weights are the same at the first and the last step, as when no gradient reaches it (broken
      where it holds for all modules).
    - "zero update": an adapter's update is still zero at the last step, as when its B never trained (broken where it
      holds for all modules).
    - "magnitude": magnitudes are all as at the first step, while the rest of the adapter moved.
    - "base": the base is another one (broken): an adapter that starts at the identity does not reproduce W₀ at step 0,
      or the median of DoRA's magnitudes is more than half away from W₀'s norms.
    - "exploding": ‖W_t‖ is more than ten times ‖W₀‖.
    - "repeated step": no tensor differs from the step before.

    Arguments:
        run: The run.
        every_step: Look at all steps; else at the first, the last, and the one before it.
        dtypes: Merging the last update is tried in these and in the base's own dtype.
        progress: Show a progress bar.

    Raises:
        RecordError: A file is damaged.
    """
    steps = run.steps if every_step else sorted({*run.steps[:1], *run.steps[-2:]})
    findings: list[Finding] = []
    survived: list[dict[str, Any]] = []
    same = dict.fromkeys(steps[1:], 0)  # how many modules are as at the step before
    for module in tqdm(run.modules, desc=f"checks of {run.name}", unit="module", disable=not progress):
        found = list(_check_module(run, module, steps, same))
        findings += found
        finite = not any(finding.check == "finite" for finding in found)
        if steps and run.base_from is not None and finite:
            survived += _survived(run, module, steps[-1], dtypes)
    for step, modules in same.items():
        if run.modules and modules == len(run.modules):
            findings.append(Finding("warning", "repeated step", "", step, "nothing differs from the step before it"))
    for check, text in (("moved", "nothing in this run moved"), ("zero update", "every update is zero")):
        found = [finding for finding in findings if finding.check == check]
        if found and len(found) == len(run.modules):
            findings = [finding for finding in findings if finding.check != check]
            whole = Finding("broken", check, "", found[0].step, f"{text}: did the optimizer get these parameters?")
            findings.insert(0, whole)
    columns = ["module", "layer", "kind", "step", "dtype", "entries", "error"]
    return Soundness(findings, list(steps), pd.DataFrame(survived, columns=columns).astype({"layer": "Int64"}))


def _check_module(run: Trajectory, module: str, steps: Sequence[int], same: dict[int, int]) -> Iterator[Finding]:
    base = run.base(module).double() if run.base_from is not None else None
    if base is not None and not torch.isfinite(base).all():
        yield Finding("broken", "finite", module, None, "its base holds NaN or infinity")
        return
    first: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    exploded = False
    for step in steps:
        before, last = last, run.state(module, step)
        wrong = [name for name, value in last.items() if not torch.isfinite(value).all()]
        if wrong:
            yield Finding("broken", "finite", module, step, f"{wrong[0]} holds NaN or infinity")
            return
        if before:
            same[step] += _equal(before, last)
        first = first or last
        if base is not None and not exploded:
            grown = _norm(run.weight(module, step)) / max(_norm(base), 1e-300)
            if exploded := grown > EXPLODED:
                text = f"its weights are {grown:.3g} times as large as the base's"
                yield Finding("warning", "exploding", module, step, text)
    if len(steps) > 1 and _equal(first, last):
        text = f"it is the same at step {steps[0]} and {steps[-1]}: no gradient reached it, or it was frozen"
        yield Finding("warning", "moved", module, steps[-1], text)
    if steps and run.source.rebuilt(module):
        yield from _check_adapter(run, module, steps, first, last)


def _check_adapter(
    run: Trajectory, module: str, steps: Sequence[int], first: dict[str, Tensor], last: dict[str, Tensor]
) -> Iterator[Finding]:
    held = [name for name in last if "magnitude" in name and torch.equal(last[name], first[name])]
    if held and not _equal(first, last):
        text = f"{', '.join(held)} is as at step {steps[0]}, while the rest of the adapter moved"
        yield Finding("warning", "magnitude", module, steps[-1], text)
    if run.base_from is None:
        return
    if steps[-1] > 0 and not run.update(module, steps[-1]).any():
        zero = [name for name, value in last.items() if value.is_floating_point() and not value.any()]
        because = f" ({', '.join(zero)} is zero)" if zero else ""
        yield Finding("warning", "zero update", module, steps[-1], f"its update is still zero{because}")
    base = run.base(module).double()
    away = _norm(run.update(module, steps[0])) / max(_norm(base), 1e-300)
    if steps[0] == 0 and away > STARTED and not isinstance(run.method_of(module), DualLoRA):
        text = f"at the start of training W' is {away:.3g} of ‖W₀‖ away from W₀: this is another base"
        yield Finding("broken", "base", module, 0, text)
        return
    for name, value in first.items():
        norms = [torch.linalg.vector_norm(base, dim=dim) for dim in (0, 1) if base.shape[1 - dim] == value.numel()]
        if "magnitude" in name and norms:  # of a square matrix it could be either axis
            ratio = min((value.double().flatten() / n.clamp_min(1e-300) - 1).abs().median().item() for n in norms)
            if ratio > FOREIGN:
                text = f"{name} is {ratio:.3g} away from the norms of W₀ (relative, median): this is another base"
                yield Finding("broken", "base", module, steps[0], text)


def _survived(run: Trajectory, module: str, step: int, dtypes: Sequence[torch.dtype]) -> Iterator[dict[str, Any]]:
    base, update = run.base(module), run.update(module, step)
    about = {name: value for name, value in run.labels(module).items() if name in ("module", "layer", "kind")}
    for dtype in dict.fromkeys([base.dtype, *dtypes]):
        left = survival(base, update, dtype)
        yield about | {"step": step, "dtype": str(dtype).removeprefix("torch."), **vars(left)}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix.double()))

"""Is a run sound: is it finite, did it train, is the base its own, does the update survive merging?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from deltaw.adapters.errors import OptionError
from deltaw.adapters.peft.names import MADE_AGAIN
from deltaw.analysis.inspection.base_check import FOREIGN, ROUNDED, Nearness, nearness, start_agrees, why_foreign
from deltaw.analysis.measures.survival import Stored, is_stored, other_base, survival
from deltaw.analysis.progress import progress as shown
from deltaw.analysis.records.foreign.base import BaseError, BaseLike, open_base
from deltaw.analysis.records.run_folder.format import BASE
from deltaw.analysis.trajectory import Trajectory

if TYPE_CHECKING:  # one table is made with pandas, when it is asked for; the checks need none
    import pandas as pd

Level = Literal["broken", "warning"]

EXPLODED = 10.0  # ‖W_t‖ / ‖W₀‖ from which on weights have left what they were
DTYPES = (torch.bfloat16, torch.float16)  # what the last update is merged into by default
STARTED = 1e-3  # ‖W'−W₀‖ / ‖W₀‖ up to which an untrained adapter counts as the identity
_SURVIVAL = ("module", "layer", "kind", "step", "dtype", "entries", "error")


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
    """The results of the checks.

    Arguments:
        findings: What is wrong; empty where nothing is.
        steps: The steps that were looked at.
        survivals: How much of the last step's update survives merging, a row a module and dtype: module, layer, kind,
            step, dtype, entries, error; see `survival`. Empty where the base is not known.
        merges: How far merging the last update into another model is from what was trained, a row a module: module,
            layer, kind, step, distance, error; see `other_base`. Empty without such a model.
    """

    findings: list[Finding]
    steps: list[int]
    survivals: list[dict[str, Any]]
    merges: list[dict[str, Any]] = field(default_factory=list)

    @property
    def precision(self) -> "pd.DataFrame":
        """``survivals`` as a table."""
        import pandas as pd

        return pd.DataFrame(self.survivals, columns=list(_SURVIVAL)).astype({"layer": "Int64"})

    @property
    def broken(self) -> bool:
        """Whether there is a finding of level "broken"."""
        return any(finding.level == "broken" for finding in self.findings)


def soundness(
    run: Trajectory,
    *,
    base: BaseLike = None,
    every_step: bool = False,
    dtypes: Sequence[Stored] = DTYPES,
    merge_into: BaseLike = None,
    progress: bool = False,
) -> Soundness:
    """Check a run for what usually goes wrong in training, one matrix at a time.

    - "finite": a tensor holds NaN or infinity (broken).
    - "moved": a module's weights are the same at the first and the last step, as when no gradient reaches it (broken
      where it holds for all modules).
    - "zero update": an adapter's update is still zero at the last step, as when its B never trained (broken where it
      holds for all modules).
    - "scale": an adapter's update is zero because its α is 0, though its tensors are not.
    - "magnitude": magnitudes are all as at the first step, while the rest of the adapter moved.
    - "base": the base is another one (broken): it lacks every module; an adapter that starts at the identity does not
      reproduce W₀ at step 0; the median of DoRA's magnitudes is more than half away from W₀'s norms; the first factors
      of PiSSA or OLoRA are not made of W₀; a run of deltaw has not the base that its checksum was taken of; whole
      matrices are not near it, by ``why_foreign``. A warning, where one whole matrix that no training touched is not
      W₀ (another version of the model, or a layer that was started anew), or the base lacks some modules.
      Where the files do not say which step they are, none of what holds at step 0 is asked.
    - "exploding": ‖W_t‖ is more than ten times ‖W₀‖.
    - "repeated step": no tensor differs from the step before.

    Arguments:
        run: The run.
        base: A model that the base which a run of deltaw keeps should be of.
        every_step: Look at all steps; else at the first, the last, and the one before it.
        dtypes: Merging the last update is tried in these and in the base's own dtype; "nf4" and "fp4" are 4 bits.
        merge_into: A model that the last update may be merged into instead of the base: the one that was quantised
            for the training. ``merges`` tells what that costs. A module that it has not is a warning.
        progress: Show a progress bar.

    Raises:
        RecordError: A file is damaged.
        OptionError: ``dtypes`` are no floating dtypes.
    """
    if not isinstance(dtypes, (list, tuple)) or not all(map(is_stored, dtypes)):
        raise OptionError(f"dtypes is {dtypes!r:.80}; give a list of floating dtypes, as [torch.bfloat16]")
    steps = run.steps if every_step else sorted({*run.steps[:1], *run.steps[-2:]})
    given, into = open_base(base), open_base(merge_into)
    merges: list[dict[str, Any]] = []
    findings: list[Finding] = list(_check_sum(run))
    lacking: dict[str, str] = {}  # what the base has not, with what it says
    near: dict[str, Nearness] = {}  # of whole matrices to W₀
    survived: list[dict[str, Any]] = []
    same = dict.fromkeys(steps[1:], 0)  # how many modules are as at the step before
    for module in shown(run.modules, f"checks of {run.name}", "module", progress):
        try:
            own = run.base(module) if run.base_from is not None else None
            other = None if given is None else given.read(module, run.shape(module))
        except BaseError as error:
            lacking[module], own, other = str(error), None, None
        found = list(_check_module(run, module, steps, same, own))
        findings += found
        finite = not any(finding.check == "finite" for finding in found)
        if steps and own is not None and finite:
            frozen = any(finding.check == "moved" for finding in found)
            nearest = _near(run, module, steps[0], own, other, frozen=frozen)
            if nearest is not None:
                near[module] = nearest
            survived += _survived(run, module, steps[-1], dtypes)
            if into is not None:
                try:
                    merges.append(_merged(run, module, steps[-1], into.read(module, run.shape(module))))
                except BaseError as error:
                    findings.append(Finding("warning", "merge", module, steps[-1], str(error)))
    for step, modules in same.items():
        if run.modules and modules == len(run.modules):
            findings.append(Finding("warning", "repeated step", "", step, "nothing differs from the step before it"))
    for check, text in (("moved", "nothing in this run moved"), ("zero update", "every update is zero")):
        found = [finding for finding in findings if finding.check == check]
        if found and len(found) == len(run.modules):
            findings = [finding for finding in findings if finding.check != check]
            whole = Finding("broken", check, "", found[0].step, f"{text}: did the optimizer get these parameters?")
            findings.insert(0, whole)
    if given is None and steps and not _is_start(run, steps[0]) and all(found.untouched for found in near.values()):
        near = {}  # all stood still, perhaps after training
    where, at = (run.base_from, steps[0] if steps else None) if given is None else (given.where, None)
    findings += _check_base(run, at, where, lacking, near)
    return Soundness(findings, list(steps), survived, merges)


def _check_sum(run: Trajectory) -> Iterator[Finding]:
    found = run.source.base_checksum()
    if found is not None and found[0] != found[1]:
        yield Finding("broken", "base", "", None, f"{BASE} has another checksum than was recorded: it was changed")


def _near(
    run: Trajectory, module: str, step: int, own: Tensor, other: Tensor | None, *, frozen: bool
) -> Nearness | None:
    """How near to W₀ what should be it is: the run's own base to another, a whole matrix to the base that was given."""
    if other is not None:
        return nearness(own, other, untouched=True)
    if run.source.rebuilt(module) or run.source.keeps_base or run.source.format == "pair":
        return None
    return nearness(run.weight(module, step), own, untouched=_is_start(run, step) or frozen)


def _check_base(
    run: Trajectory, step: int | None, where: str | None, lacking: dict[str, str], near: dict[str, Nearness]
) -> Iterator[Finding]:
    if lacking and len(lacking) == len(run.modules):
        text = next(iter(lacking.values()))
        yield Finding("broken", "base", "", None, f"no module of this run is in the base: {text}")
    else:
        for module, text in lacking.items():
            yield Finding("warning", "base", module, None, f"it has no W₀: {text}")
    # Copies that an adapter saves whole are few, and may all have been started anew.
    reason = why_foreign(near) if len(near) + len(lacking) == len(run.modules) else None
    if reason is not None:
        yield Finding("broken", "base", "", step, f"{where} is another base: {reason}")
        return
    for module, found in near.items():
        if found.untouched and found.distance > ROUNDED:
            text = (
                f"no training touched it, yet it is {found.distance:.3g} of ‖W₀‖ away from W₀: it was started anew, or"
            )
            yield Finding("warning", "base", module, step, f"{text} {where} is another version of the base")


def _check_module(
    run: Trajectory, module: str, steps: Sequence[int], same: dict[int, int], base: Tensor | None
) -> Iterator[Finding]:
    base = None if base is None else base.double()
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
    yield from _check_start(run, module, steps, first)
    still = not run.update(module, steps[-1]).any()
    if still and run.info.get("peft", {}).get("lora_alpha") == 0 and all(value.any() for value in last.values()):
        yield Finding(
            "warning", "scale", module, steps[-1], "its update is zero, as lora_alpha is 0 in its configuration"
        )
    elif steps[-1] > 0 and still:
        zero = [name for name, value in last.items() if value.is_floating_point() and not value.any()]
        because = f" ({', '.join(zero)} is zero)" if zero else ""
        yield Finding("warning", "zero update", module, steps[-1], f"its update is still zero{because}")
    base = run.base(module).double()
    away = _norm(run.update(module, steps[0])) / max(_norm(base), 1e-300)
    if _is_start(run, steps[0]) and away > STARTED and _starts_at_base(run, module):
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


def _check_start(run: Trajectory, module: str, steps: Sequence[int], first: dict[str, Tensor]) -> Iterator[Finding]:
    start = str(run.info.get("peft", {}).get("init_lora_weights")).split("_niter_")[0]
    if not _is_start(run, steps[0]) or start not in MADE_AGAIN or not {"lora_A", "lora_B"} <= first.keys():
        return
    base = run.base(module)
    if first["lora_A"].ndim == 2 and first["lora_B"].shape[0] == base.shape[0]:
        cosine = start_agrees(first["lora_A"], first["lora_B"], base)
        if cosine < FOREIGN:
            text = f"lora_A and lora_B at step 0 are not made of this W₀ (cosine {cosine:.2g}): this is another base"
            yield Finding("broken", "base", module, 0, text)


def _merged(run: Trajectory, module: str, step: int, other: Tensor) -> dict[str, Any]:
    found = other_base(run.base(module), run.update(module, step), other)
    return _about(run, module) | {"step": step, **vars(found)}


def _about(run: Trajectory, module: str) -> dict[str, Any]:
    return {name: value for name, value in run.labels(module).items() if name in ("module", "layer", "kind")}


def _survived(run: Trajectory, module: str, step: int, dtypes: Sequence[Stored]) -> Iterator[dict[str, Any]]:
    base, update = run.base(module), run.update(module, step)
    about = _about(run, module)
    for dtype in dict.fromkeys([base.dtype, *dtypes]):
        left = survival(base, update, dtype)
        yield about | {"step": step, "dtype": str(dtype).removeprefix("torch."), **vars(left)}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix.double()))


def _is_start(run: Trajectory, step: int) -> bool:
    """Whether a step is known to be the one before training."""
    return step == 0 and run.source.steps_known


def _starts_at_base(run: Trajectory, module: str) -> bool:
    """Whether W' = W₀ before the first step; so it is where the method is not known."""
    method = run.method_of(module)
    return method is None or method.starts_at_base

"""The tokens whose rows of an embedding or an output head moved most, and those that a resized vocabulary has new."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import NonFiniteError, OptionError
from deltaw.analysis.measures.threads import one_thread
from deltaw.analysis.names import is_embedding
from deltaw.analysis.records.foreign.vocabulary import token_texts
from deltaw.analysis.tables.changes import from_to
from deltaw.analysis.tables.run import LABELS, Pairs, Run, Step, Steps
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.walk import Walk, at_pairs, at_steps, chosen_modules
from deltaw.analysis.tables.work import How, work_from

BY = ("relative", "update_norm", "delta_m", "delta_d")
# Embeddings whose rows are no tokens: places, distances, segments, the image as a whole.
_NO_TOKENS = re.compile(r"(?:^|_)(?:pos|wpe|type|segment|relative|class|patch|time)", re.IGNORECASE)
_ENTRIES = 2**22  # widened at once


@public
def token_changes(
    runs: Sequence[Run],
    pairs: Pairs = "base",
    *,
    top: int | None = 20,
    by: str = "relative",
    tokenizer: str | Path | None = None,
    modules: Sequence[str] | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    r"""Return the tokens that moved most: rows w of an embedding or output head, from w to w + d.

        relative = ‖d‖ / ‖w‖,    delta_m = |‖w + d‖ − ‖w‖|,    delta_d = 1 − cos(w, w + d)

    Arguments:
        runs: Opened runs that show such modules, as ``Trajectory.open(folder, modules=["*embed_tokens*"])`` does.
        pairs: "base" (W₀, t), "consecutive" (t−1, t), "initial" (first recorded step, t), or a list of pairs, with
            ``None`` for the base.
        top: So many of every module and pair; ``None`` for all.
        by: By which column they are sorted, largest first: "relative", "update_norm", "delta_m" or "delta_d".
        tokenizer: A folder with tokenizer.json, vocab.json or vocab.txt, where none is beside the checkpoint or base.
        modules: Glob patterns; ``None`` for those whose names are an embedding's of tokens or an output head's.
        progress, device, …: As in `singular_values`.

    Returns:
        One row a token: run, method, module, layer, kind, step_from (missing for the base), step_to, token (the row,
        from 0), text (as the vocabulary writes it, made printable and of 60 characters at most; "" where it is not
        known), delta_m and update_norm (‖d‖, both in units of the weights), delta_d (NaN where the row is zero at one
        of the steps), relative (infinite where the row was zero, NaN where it stayed so; such are last).

    Raises:
        OptionError: No run; a run has no such module; unknown pairs, step or ``by``; ``top`` below 1.
        NonFiniteError: A weight holds NaN or infinity; names module and steps.
        RecordError: The ``tokenizer`` that was given holds none.

    Source:
        Rows as vectors: BoRA, equations 5 and 6.
    """
    if not isinstance(by, str) or by not in BY:
        raise OptionError(f"by is {by!r}; choose one of {', '.join(BY)}")
    most = None if top is None else whole_number("top", top, 1)
    walk = Walk(runs, "tokens", at_pairs(pairs), partial(_modules, given=modules), unit="pair", progress=progress,
                work=work_from(work))  # fmt: skip
    blocks = walk.rows(partial(_of_pair, top=most, by=by))
    columns = [*LABELS, "step_from", "step_to", "token", "delta_m", "delta_d", "update_norm", "relative"]
    return _with_texts(walk.frame(blocks, columns), runs, tokenizer)


@public
def new_tokens(
    runs: Sequence[Run],
    steps: Steps = "last",
    *,
    tokenizer: str | Path | None = None,
    modules: Sequence[str] | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    r"""Return the tokens that a resized vocabulary has beyond W₀'s, beside the old ones: w_i new, μ the old ones' mean.

        norm = ‖w_i‖, beside the mean of the old rows' norms;    to_mean = ‖w_i − μ‖, beside the old rows' mean of it

    All at the same step. A new row has no W₀, so that it has no ΔM and ΔD from there; that it still is where it began
    is seen by to_mean, as transformers draws new rows close to the mean.

    Arguments:
        runs, tokenizer, modules: As in `token_changes`.
        steps: These steps, "last" for each run's last, ``None`` for all.
        progress, device, …: As in `singular_values`.

    Returns:
        One row a new token, none where no vocabulary grew: run, method, module, layer, kind, step, token, text, norm,
        old_norm, to_mean, old_to_mean, in units of the weights.

    Raises:
        OptionError, NonFiniteError, RecordError: As `token_changes`.
    """
    of_tokens = partial(_modules, given=modules)
    walk = Walk(runs, "new tokens", at_steps(steps), of_tokens, progress=progress, work=work_from(work))
    columns = [*LABELS, "step", "token", "norm", "old_norm", "to_mean", "old_to_mean"]
    return _with_texts(walk.frame(walk.rows(_of_new), columns), runs, tokenizer)


def holds_tokens(module: str) -> bool:
    """Return whether a module's name is that of an embedding of tokens, or of an output head over them.

    Example:
        >>> holds_tokens("model.embed_tokens"), holds_tokens("lm_head"), holds_tokens("transformer.wpe")
        (True, True, False)
    """
    return is_embedding(module) and not _NO_TOKENS.search(module.rpartition(".")[2])


def _modules(run: Run, given: Sequence[str] | None) -> Sequence[str]:
    if given is not None:
        return chosen_modules(run.modules, given)
    found = [module for module in run.modules if holds_tokens(module)]
    if not found:
        raise OptionError(
            f"{run.source.where}: shows no embedding or output head whose rows are tokens; open it with "
            'modules=["*embed_tokens*"] or another pattern that fits one, or leave this run out'
        )
    return found


def _of_pair(stop: Stop, top: int | None, by: str) -> list[dict[str, Any]]:
    stop.where = from_to(stop.step_from, stop.step)
    change = stop.changes(["row"])["row"]
    values = {"delta_m": change.magnitude.numpy(), "delta_d": change.direction.numpy()}
    before, after = (_norms_at(stop, step) for step in (stop.step_from, stop.step))
    # ‖d‖² = (‖b‖ − ‖a‖)² + 2 ‖a‖ ‖b‖ (1 − cos): no difference of large numbers, where b − a would be one.
    turned = np.where(np.isnan(values["delta_d"]), 0.0, 2 * before * after * values["delta_d"])
    values["update_norm"] = np.sqrt(values["delta_m"] ** 2 + turned)
    with np.errstate(divide="ignore", invalid="ignore"):
        values["relative"] = values["update_norm"] / before
    order = np.argsort(-values[by], kind="stable")[:top]  # NaN comes last
    found = {"token": order} | {name: each[order] for name, each in values.items()}
    return [stop.labels | {"step_from": stop.step_from, "step_to": stop.step} | found]


def _of_new(stop: Stop) -> list[dict[str, Any]]:
    new = stop.run.source.new_rows(stop.module, stop.step)
    if new is None or not len(new):
        return []
    old = stop.weight(stop.step)
    mean = _mean(old)
    about: dict[str, Any] = {"norm": _norms(new), "old_norm": float(_norms_at(stop, stop.step).mean())}
    about |= {"to_mean": _norms(new, mean), "old_to_mean": float(_norms(old, mean).mean())}
    if not all(np.isfinite(value).all() for value in about.values()):
        raise NonFiniteError("a row holds NaN or infinity; see where the training diverged, and ask for a step before")
    return [stop.labels | {"step": stop.step, "token": len(old) + np.arange(len(new))} | about]


def _norms_at(stop: Stop, step: Step) -> NDArray[np.float64]:
    found: NDArray[np.float64] = stop.once(f"norms of rows at {step}", lambda: _norms(stop.weight(step)))
    return found


def _norms(rows: Tensor, center: Tensor | None = None) -> NDArray[np.float64]:
    """The norms of rows (tokens, in), from a center (in,) where one is given; a few rows at a time in float64."""
    with one_thread():
        parts = (part if center is None else part - center for part in _widened(rows))
        found: NDArray[np.float64] = torch.cat([torch.linalg.vector_norm(part, dim=1) for part in parts]).numpy()
    return found


def _mean(rows: Tensor) -> Tensor:
    with one_thread():
        return torch.stack([part.sum(0) for part in _widened(rows)]).sum(0) / len(rows)


def _widened(rows: Tensor) -> Iterator[Tensor]:
    count = max(1, _ENTRIES // max(1, rows.shape[1]))
    for start in range(0, len(rows), count):
        yield rows[start : start + count].double().cpu()


def _with_texts(frame: pd.DataFrame, runs: Sequence[Run], tokenizer: str | Path | None) -> pd.DataFrame:
    """The table with a column of texts; they are read after the measuring, as no kept table is to hold them."""
    texts: dict[tuple[str, int], str] = {}
    theirs = frame["module"].map(holds_tokens).astype(bool)
    for run in runs:
        ids = set(frame["token"][theirs & (frame["run"] == run.name)].tolist())
        if ids:
            texts |= {(run.name, number): text for number, text in token_texts(run.source, ids, tokenizer).items()}
    rows = zip(frame["run"], frame["token"], theirs, strict=True)
    shown = [texts.get((name, number), "") if own else "" for name, number, own in rows]
    frame.insert(list(frame.columns).index("token") + 1, "text", pd.Series(shown, index=frame.index, dtype=object))
    return frame

"""Fine-tune a model on CoLA with any method, and record how its weights move."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

from deltaw.adapters.errors import DataError, TargetError
from deltaw.adapters.modules import linear_modules
from deltaw.adapters.patterns import matching
from deltaw.analysis.names import kind_of
from deltaw.analysis.progress import tell
from deltaw.trainers.cola.data import BUILTIN, Corpus, load_corpus
from deltaw.trainers.cola.settings import ColaSettings
from deltaw.trainers.fine_tuning import check_library, check_shapes, fine_tune
from deltaw.trainers.finished import finish, finished
from deltaw.trainers.loading import first_line, quiet
from deltaw.trainers.schedules import every
from deltaw.trainers.task import Task, Trained


@dataclass(frozen=True)
class ColaResult:
    """The result of a finished run.

    Arguments:
        method: The method's name.
        out: The run folder.
        trainable: Trainable parameters, of the adapters alone, without the classifier head (with it for ``ft``).
        share: Their share of all parameters of the base model.
        best_mcc: Matthews correlation on the development set at the best epoch.
        best_epoch: That epoch, from 1.
        final_mcc: The last epoch's.
        n_dev: Sentences in the development set.
        seconds_per_epoch: Median time of an epoch of training, without evaluation.
        peak_megabytes: Peak memory of the process (or of the GPU) during the run.
        learning_rate, epochs, seed: As they were used.
        rank: As it was used; None for a method without one.
        device: Where it was trained, whose memory the peak is.
    """

    method: str
    out: str
    trainable: int
    share: float
    best_mcc: float
    best_epoch: int
    final_mcc: float
    n_dev: int
    seconds_per_epoch: float
    peak_megabytes: float
    learning_rate: float
    epochs: int
    seed: int
    rank: int | None = None
    device: str = "cpu"


def train_cola(settings: ColaSettings, out: str | Path, *, progress: bool = True) -> ColaResult:
    """Fine-tune and record one run; an interrupted one goes on, a finished one is only read.

    Arguments:
        settings: What to train.
        out: The run folder: new, empty, or holding this very run.
        progress: Show a progress bar.

    Returns:
        The result, also kept as ``result.json`` in the run folder, with the labels of the development set and the best
        epoch's predictions: two runs' scores are compared sentence by sentence.

    Raises:
        RecordError: The folder holds another run.
        DataError: The data or the model cannot be used, or the method's library is missing.
        OptionError, TargetError: As ``inject``.
    """
    out = Path(out)
    there = finished_cola(settings, out)
    if there is not None:
        tell(f"{out}: was finished before", enabled=progress)
        return there
    check_library(settings.make_method(), settings)
    task = _task(settings)
    trained = fine_tune(settings, task, out, progress=progress)
    sentences = task.evaluation["eval_dataset"]
    result = _result(settings, out, trained, len(sentences))
    finish(settings, out, result, _answers(sentences, trained, result.best_epoch))
    return result


def check_cola(runs: Sequence[ColaSettings]) -> None:
    """Raise what would stop one of these runs before it trains: its options, shapes, targets, library, data or model.

    Arguments:
        runs: They differ in method, options, learning rate and seed alone; data and model are loaded once.

    Raises:
        OptionError, TargetError, DataError: As ``train_cola``.
    """
    if not runs:
        return
    methods = [run.make_method() for run in runs]
    for method in methods:
        check_library(method, runs[0])
    load_corpus(runs[0].data)
    with quiet():
        _tokenizer(runs[0].model)
        model = _model(runs[0].model)
    check_shapes(methods, model, _targets(model, runs[0].targets))


def finished_cola(settings: ColaSettings, out: Path) -> ColaResult | None:
    """Return the result of a finished run with these settings; None where there is work to do.

    Raises:
        RecordError: The folder holds something else.
    """
    return finished(settings, out, ColaResult)


def _task(settings: ColaSettings) -> Task:
    corpus = load_corpus(settings.data)
    with quiet():
        tokenizer = _tokenizer(settings.model)
        set_seed(settings.seed)  # the head is the same whatever the method
        model = _model(settings.model)
    targets = _targets(model, settings.targets)
    train, dev = (_encode(tokenizer, part, settings.max_length) for part in (corpus.train, corpus.dev))
    collator, size = DataCollatorWithPadding(tokenizer), settings.batch_size

    def context(count: int) -> Iterator[Any]:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        for start in range(0, min(len(order), count * size), size):
            yield collator([train[i] for i in order[start : start + size]])

    return Task(
        experiment="cola",
        corpus=corpus.name,
        model=model,
        targets=targets,
        heads=_heads(model),
        train=train,
        batch_size=size,
        group_by_length=settings.group_by_length,
        collator=collator,
        context=context,
        evaluation={"eval_dataset": dev, "compute_metrics": _matthews},
        shown="mcc",
        when=lambda steps: every(settings.record_every),
        log_every=settings.record_every,
    )


def _tokenizer(model: str | None) -> Any:
    source = str(BUILTIN / "model") if model is None else model
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: no tokenizer can be loaded ({first_line(error)})") from None


def _model(model: str | None) -> nn.Module:
    source = str(BUILTIN / "model") if model is None else model
    try:
        loaded: nn.Module = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source}: no model can be loaded; wanted is a name on the hub, or a folder with config.json and "
            f"model.safetensors ({first_line(error)})"
        ) from None
    return loaded


def _targets(model: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    layers = dict(linear_modules(model))
    if patterns is not None:
        return matching(layers, patterns, "target")
    found = [name for name in layers if kind_of(name) in ("query", "value")]
    if not found:
        raise TargetError(f"the model has no query and value matrices by name; give targets from {', '.join(layers)}")
    return found


def _heads(model: nn.Module) -> list[str]:
    """The names of everything beside the pretrained encoder: the classifier head."""
    encoder = getattr(model, "base_model_prefix", "")
    return [name for name, _ in model.named_children() if name != encoder]


def _encode(tokenizer: Any, part: tuple[list[str], list[int]], max_length: int) -> list[dict[str, Any]]:
    sentences, labels = part
    limit = min(max_length, tokenizer.model_max_length)
    rows = tokenizer(sentences, truncation=True, max_length=limit, return_token_type_ids=False)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(rows["input_ids"], rows["attention_mask"], labels, strict=True)
    ]


def _matthews(prediction: Any) -> dict[str, float | str]:
    from sklearn.metrics import matthews_corrcoef

    found = np.argmax(prediction.predictions, axis=-1)
    return {"mcc": float(matthews_corrcoef(prediction.label_ids, found)), "predictions": _digits(found)}


def _digits(classes: Iterable[int]) -> str:
    """Zeros and ones as a text, one digit a sentence: a list of them would be a line each in result.json."""
    return "".join(str(int(one)) for one in classes)


def _answers(sentences: Sequence[dict[str, Any]], trained: Trained, epoch: int) -> dict[str, str] | None:
    """The labels and an epoch's predictions; None where an earlier version, which kept none, had evaluated it."""
    for entry in trained.log:
        if "eval_predictions" in entry and round(entry["epoch"]) == epoch:
            return {
                "labels": _digits(sentence["labels"] for sentence in sentences),
                "predictions": entry["eval_predictions"],
            }
    return None


def _result(settings: ColaSettings, out: Path, trained: Trained, n_dev: int) -> ColaResult:
    scores = [(entry["eval_mcc"], round(entry["epoch"])) for entry in trained.log if "eval_mcc" in entry]
    best, epoch = max(scores, key=lambda pair: (pair[0], -pair[1]))
    return ColaResult(
        method=settings.method,
        out=out.name,
        trainable=trained.trainable,
        share=trained.share,
        best_mcc=best,
        best_epoch=epoch,
        final_mcc=scores[-1][0],
        n_dev=n_dev,
        seconds_per_epoch=trained.seconds_per_epoch,
        peak_megabytes=trained.peak_megabytes,
        learning_rate=settings.rate(),
        epochs=settings.epochs,
        seed=settings.seed,
        rank=settings.make_method().options().get("rank") if settings.advice is None else None,
        device=trained.device,
    )


__all__ = ["ColaResult", "ColaSettings", "Corpus", "train_cola"]

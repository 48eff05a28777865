"""The task of a fine-tuning run and its outcome: plain data that every experiment makes and reads."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from deltaw.trainers.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class Task:
    """The model that a run trains, its data, and its score.

    Arguments:
        experiment, corpus: Their names in the record.
        model: The plain model.
        targets: The names of the modules that the method goes on.
        heads: The names of the parts that are trained with any method, and are not counted as the method's.
        train: The training examples; their order is the Trainer's, or that of ``batches``.
        batches: What yields the keys of a batch after the other, over and over, with a length and ``set_epoch``.
        batch_size: Examples in a batch.
        group_by_length: Whether the Trainer's order puts examples of about the same length into a batch.
        collator: Makes a batch of examples.
        context: Yields this many batches for a method that starts from data.
        evaluation: The Trainer's arguments for evaluating: eval_dataset, compute_metrics.
        score: Instead of these, a function from the model to its scores by name.
        eval_every: Epochs between two evaluations; there is one at the end in any case.
        shown: The score beside the progress bar.
        when: The recorded steps from the number of all steps.
        log_every: Steps between two entries of the loss.
    """

    experiment: str
    corpus: str
    model: nn.Module
    targets: list[str]
    heads: list[str]
    train: Any
    batches: Any = None
    batch_size: int
    group_by_length: bool = False
    collator: Callable[[list[Any]], Any]
    context: Callable[[int], Iterable[dict[str, Any]]]
    evaluation: dict[str, Any] = field(default_factory=dict)
    score: Callable[[nn.Module], dict[str, float]] | None = None
    eval_every: int = 1
    shown: str
    when: Callable[[int], Schedule]
    log_every: int


@dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Arguments:
        trainable: Trainable parameters, of the method alone, without the heads (with them where all weights train).
        share: Their share of all parameters of the base model.
        log: What was logged, entry by entry; scores are named ``eval_…``.
        seconds_per_epoch: Median time of an epoch of training, without evaluation.
        peak_megabytes: Peak memory of the process (or of the GPU) during the run.
        device: Where it was trained.
    """

    trainable: int
    share: float
    log: list[dict[str, Any]]
    seconds_per_epoch: float
    peak_megabytes: float
    device: str

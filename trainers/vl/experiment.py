"""Fine-tune VL-BART on four tasks over pictures with any method, and record how its weights move."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from deltaw.adapters.errors import OptionError, TargetError
from deltaw.adapters.modules import linear_modules
from deltaw.adapters.patterns import matching
from deltaw.analysis.names import kind_of, stack_of
from deltaw.analysis.progress import tell
from deltaw.trainers.fine_tuning import check_library, check_shapes, fine_tune
from deltaw.trainers.finished import finish, finished
from deltaw.trainers.loading import quiet
from deltaw.trainers.schedules import at, every
from deltaw.trainers.task import Task, Trained
from deltaw.trainers.vl.data import VLCorpus, load_vl_corpus
from deltaw.trainers.vl.examples import TASKS, Example, prompt
from deltaw.trainers.vl.features import Features, load_features
from deltaw.trainers.vl.mix import Collator, TaskBatches, TrainingExamples, token_ids
from deltaw.trainers.vl.model import VLBart, load_vl_bart
from deltaw.trainers.vl.scores import prior_scores, score
from deltaw.trainers.vl.settings import VLSettings

HEAD = "visual"  # what turns features into tokens: new, so trained with any method
MEAN = "mean"


@dataclass(frozen=True)
class VLResult:
    """The result of a finished run.

    Arguments:
        method: The method's name.
        out: The run folder.
        trainable: Trainable parameters, of the adapters alone, without the visual part (with it for ``ft``).
        share: Their share of all parameters of the base model.
        scores: By task, after the last epoch: VQA accuracy, GQA accuracy, NLVR accuracy in [0, 1], and CIDEr, where
            1.0 is what papers print as 100.
        mean: Of the scores.
        prior: What guessing scores, by task: see ``prior_scores``.
        n_dev: Development examples by task.
        seconds_per_epoch: Median time of an epoch of training, without evaluation.
        peak_megabytes: Peak memory of the process (or of the GPU) during the run.
        learning_rate, epochs, seed: As they were used.
        rank: As it was used; None for a method without one.
        history: The scores and their mean at every epoch that was evaluated.
        device: Where it was trained, whose memory the peak is.
    """

    method: str
    out: str
    trainable: int
    share: float
    scores: dict[str, float]
    mean: float
    prior: dict[str, float]
    n_dev: dict[str, int]
    seconds_per_epoch: float
    peak_megabytes: float
    learning_rate: float
    epochs: int
    seed: int
    rank: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    device: str = "cpu"


@dataclass(frozen=True)
class VLData:
    """Shared by runs with the same data: the examples, the features of their pictures, and the score of guessing."""

    corpus: VLCorpus
    features: Features
    prior: dict[str, float]


def load_vl_data(settings: VLSettings, *, progress: bool = True) -> VLData:
    """Read the examples and the features of every picture.

    Raises:
        DataError: As ``load_vl_corpus`` and ``load_features``.
        OptionError: The data have no examples of a task.
    """
    corpus = load_vl_corpus(settings.data, limit=settings.limit, dev_limit=settings.dev_limit)
    for task in settings.tasks or ():
        if task not in corpus.tasks:
            raise OptionError(f"the data have no examples of {task}; they have {', '.join(corpus.tasks)}")
    wanted = settings.tasks or corpus.tasks
    train, dev = (tuple(e for e in part if e.task in wanted) for part in (corpus.train, corpus.dev))
    used = {key for example in (*train, *dev) for key in example.pictures}
    pictures = {key: opener for key, opener in corpus.pictures.items() if key in used}
    corpus = replace(corpus, train=train, dev=dev, pictures=pictures)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features = load_features(settings.vision, corpus, progress=progress, device=device)
    return VLData(corpus, features, prior_scores(corpus))


def train_vl(settings: VLSettings, out: str | Path, *, progress: bool = True, data: VLData | None = None) -> VLResult:
    """Fine-tune and record one run; an interrupted one goes on, a finished one is only read.

    Arguments:
        settings: What to train.
        out: The run folder: new, empty, or holding this very run.
        progress: Show a progress bar.
        data: What ``load_vl_data`` returned for these settings; ``None`` reads them.

    Returns:
        The result, also kept as ``result.json`` in the run folder.

    Raises:
        RecordError: The folder holds another run.
        DataError: Data, pictures or the model cannot be used, or the method's library is missing.
        OptionError, TargetError: As ``inject``.
    """
    out = Path(out)
    there = finished_vl(settings, out)
    if there is not None:
        tell(f"{out}: was finished before", enabled=progress)
        return there
    check_library(settings.make_method(), settings)
    data = data or load_vl_data(settings, progress=progress)
    task = _task(settings, data)
    trained = fine_tune(settings, task, out, progress=progress)
    result = _result(settings, out, trained, data)
    finish(settings, out, result)
    return result


def check_vl(runs: Sequence[VLSettings], *, progress: bool = True) -> VLData | None:
    """Raise what would stop one of these runs before it trains, and return the data that they share.

    Arguments:
        runs: They differ in method, options, learning rate and seed alone; data and model are loaded once.
        progress: Show a progress bar where pictures are encoded.

    Raises:
        OptionError, TargetError, DataError: As ``train_vl``.
    """
    if not runs:
        return None
    methods = [run.make_method() for run in runs]
    for method in methods:
        check_library(method, runs[0])
    data = load_vl_data(runs[0], progress=progress)
    model, _ = _model(runs[0], data)
    check_shapes(methods, model, _targets(model, runs[0]))
    return data


def finished_vl(settings: VLSettings, out: Path) -> VLResult | None:
    """Return the result of a finished run with these settings; None where there is work to do.

    Raises:
        RecordError: The folder holds something else.
    """
    return finished(settings, out, VLResult)


def _model(settings: VLSettings, data: VLData) -> tuple[VLBart, Any]:
    examples = (*data.corpus.train, *data.corpus.dev)
    most = max(2, *(len(example.pictures) for example in examples))
    set_seed(settings.seed)  # the visual part is the same whatever the method
    with quiet():
        return load_vl_bart(settings.model, tokens=data.features.tokens, width=data.features.width, pictures=most)


def _targets(model: nn.Module, settings: VLSettings) -> list[str]:
    layers = dict(linear_modules(model))
    if settings.targets is not None:
        return matching(layers, settings.targets, "target")
    found = [name for name in layers if stack_of(name) in settings.where and kind_of(name) in settings.kinds]
    if not found:
        raise TargetError(
            f"the model has no {' or '.join(settings.kinds)} in {' or '.join(settings.where)}; choose other kinds or "
            "blocks, or give targets"
        )
    return found


def _task(settings: VLSettings, data: VLData) -> Task:
    corpus = data.corpus
    model, tokenizer = _model(settings, data)
    collator = Collator(data.features, tokenizer.pad_token_id)
    train = TrainingExamples(
        corpus.train,
        tokenizer,
        max_length=settings.max_length,
        answer_length=settings.answer_length,
        seed=settings.seed,
    )
    batches = TaskBatches([example.task for example in corpus.train], settings.batch(), settings.seed)

    def context(count: int) -> Iterator[dict[str, Tensor]]:
        for _, keys in zip(range(count), batches, strict=False):
            yield collator([train[key] for key in keys])

    def scores(trained: nn.Module) -> dict[str, float]:
        return evaluate(trained, tokenizer, corpus.dev, collator, settings)

    steps_per_epoch = len(batches)
    return Task(
        experiment="vl",
        corpus=corpus.name,
        model=model,
        targets=_targets(model, settings),
        heads=[HEAD],
        train=train,
        batches=batches,
        batch_size=settings.batch(),
        collator=collator,
        context=context,
        score=scores,
        eval_every=settings.eval_every,
        shown=MEAN,
        when=lambda steps: (
            at(round(steps * part / settings.checkpoints) for part in range(1, settings.checkpoints + 1))
            if settings.record_every is None
            else every(settings.record_every)
        ),
        log_every=min(20, steps_per_epoch),
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, tokenizer: Any, examples: Sequence[Example], collator: Collator, settings: VLSettings
) -> dict[str, float]:
    """Have the model write the answer of every example, and return the scores by task and their mean."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    found: dict[str, float] = {}
    for task in TASKS:
        asked = [example for example in examples if example.task == task]
        if not asked:
            continue
        ids = token_ids(tokenizer, [prompt(example) for example in asked], settings.max_length)
        rows = [{"pictures": e.pictures, "input_ids": own} for e, own in zip(asked, ids, strict=True)]
        written: list[str] = []
        size = 4 * settings.batch()
        for start in range(0, len(rows), size):
            batch = {name: value.to(device) for name, value in collator(rows[start : start + size]).items()}
            generate: Any = model.generate
            answers = generate(**batch, max_new_tokens=settings.answer_length, num_beams=settings.beams)
            written += [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
        found[task] = score(task, written, asked)
    model.train(training)
    return found | {MEAN: sum(found.values()) / len(found)}


def _result(settings: VLSettings, out: Path, trained: Trained, data: VLData) -> VLResult:
    n_dev = {task: sum(example.task == task for example in data.corpus.dev) for task in data.prior}
    names = [*data.prior, MEAN]
    history = [
        {"epoch": round(entry["epoch"]), **{name: entry[f"eval_{name}"] for name in names}}
        for entry in trained.log
        if f"eval_{MEAN}" in entry
    ]
    last = history[-1]
    return VLResult(
        method=settings.method,
        out=out.name,
        trainable=trained.trainable,
        share=trained.share,
        scores={task: last[task] for task in data.prior},
        mean=last[MEAN],
        prior=data.prior,
        n_dev=n_dev,
        seconds_per_epoch=trained.seconds_per_epoch,
        peak_megabytes=trained.peak_megabytes,
        learning_rate=settings.rate(),
        epochs=settings.epochs,
        seed=settings.seed,
        rank=settings.make_method().options().get("rank") if settings.advice is None else None,
        history=history,
        device=trained.device,
    )


__all__ = ["VLData", "VLResult", "VLSettings", "check_vl", "finished_vl", "load_vl_data", "train_vl"]

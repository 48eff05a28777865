"""Fine-tune a model on CoLA with any method, and record how its weights move."""

import inspect
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from deltaw.adapters import (
    METHODS,
    DataError,
    GaLore,
    Method,
    OptionError,
    RecordError,
    TargetError,
    create,
    galore_optimizer,
    inject,
    parameter_groups,
    quantize,
)
from deltaw.adapters.galore import load_galore
from deltaw.adapters.inject import linear_modules, linear_shape, matching, repeated
from deltaw.adapters.quantized import load_bitsandbytes
from deltaw.analysis.files import write_text
from deltaw.analysis.names import kind_of
from deltaw.analysis.record import BASE, CHECKPOINTS, MANIFEST, read_manifest
from deltaw.trainers.callback import RecorderCallback
from deltaw.trainers.cola.data import BUILTIN, Corpus, load_corpus
from deltaw.trainers.memory import peak_megabytes, reset_peak
from deltaw.trainers.recorder import LOCK
from deltaw.trainers.schedules import every

RESULT, TRAINING = "result.json", "training"
DEFAULTS: dict[str, Any] = {"rank": 8, "alpha": 8.0}  # of the methods that have such options

# Learning rates where none is given: (where all weights train, adapters).
LEARNING_RATES = {
    "builtin": (3e-4, 2e-3),  # found on the built-in model; see docs/builtin.md
    "other": (2e-5, 4e-4),  # RoBERTa's own grid for GLUE; LoRA, Table 9, for RoBERTa-base on CoLA
}


@dataclass(frozen=True, kw_only=True)
class ColaSettings:
    """One run on CoLA. The defaults are LoRA's for RoBERTa-base, which BoRA A.2 uses.

    Hu et al. 2022, Table 9: AdamW, linear decay, warm-up ratio 0.06, batch 32, learning rate 4e-4, 80 epochs, rank 8 on
    query and value, alpha 8 (the authors' script has 16; the paper's table counts here). Weight decay is 0: the table
    names none, and decay would shrink DoRA's and BoRA's magnitudes by itself, which is the very thing measured.

    Arguments:
        method: A name of ``METHODS``.
        options: The method's options; by default rank 8, alpha 8 for every method that has them.
        model: A folder or a name on the hub; ``None`` for the built-in model, which goes with the built-in data.
        data: "builtin", "hub", or a folder (see ``load_corpus``).
        targets: Glob patterns of the adapted modules; ``None`` for all query and value matrices.
        learning_rate: ``None`` for the default of the method: see ``LEARNING_RATES``.
        max_length: Longer sentences are cut to this many tokens.
        context_batches: Batches of training sentences from which a method that starts from data (CorDA) starts.
        base: "full" for the weights as they are, "nf4" for targets in 4 bits (QLoRA, QDoRA, QBoRA, …).
        record_every: Steps between checkpoints.
        record_modules: Glob patterns of the recorded modules; ``None`` for the targets.
        save_every: Epochs between the states from which an interrupted run goes on.
        seed: Of the head, the method's start, the order of sentences and dropout.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    data: str = "builtin"
    targets: tuple[str, ...] | None = None
    epochs: int = 80
    learning_rate: float | None = None
    batch_size: int = 32
    warmup_ratio: float = 0.06
    weight_decay: float = 0.0
    max_length: int = 128
    context_batches: int = 8
    base: Literal["full", "nf4"] = "full"
    record_every: int = 20
    record_modules: tuple[str, ...] | None = None
    save_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "record_every", "save_every", "max_length", "context_batches"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        if self.base not in ("full", "nf4"):
            raise OptionError(f"base must be 'full' or 'nf4', not {self.base!r}")
        if not 0 <= self.warmup_ratio < 1:
            raise OptionError(f"warmup_ratio must lie in [0, 1), not {self.warmup_ratio!r}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise OptionError(f"learning_rate must be above 0, not {self.learning_rate!r}")
        if self.model is None and self.data != "builtin":
            raise OptionError(f"data {self.data!r} needs a model: give its name or folder, for example roberta-base")

    def make_method(self) -> Method:
        """The method with its options; rank 8 and alpha 8 where nothing else is said and it has them.

        Raises:
            OptionError: The method has no such option, or not with this value.
        """
        known = options_of(self.method)
        return create(self.method, **{name: value for name, value in DEFAULTS.items() if name in known} | self.options)

    def rate(self) -> float:
        """The learning rate that is used."""
        if self.learning_rate is not None:
            return self.learning_rate
        full, adapters = LEARNING_RATES["builtin" if self.model is None else "other"]
        return adapters if self.make_method().injects else full


def options_of(method: str) -> tuple[str, ...]:
    """The names of a method's options; of an unknown method there are none."""
    return tuple(inspect.signature(METHODS[method]).parameters) if method in METHODS else ()


@dataclass(frozen=True)
class ColaResult:
    """What a finished run came to.

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


def train_cola(settings: ColaSettings, out: str | Path, *, progress: bool = True) -> ColaResult:
    """Fine-tune and record one run; an interrupted one goes on, a finished one is only read.

    Arguments:
        settings: What to train.
        out: The run folder: new, empty, or holding this very run.
        progress: Show a progress bar.

    Returns:
        The result, also kept as ``result.json`` in the run folder.

    Raises:
        RecordError: The folder holds another run.
        DataError: The data or the model cannot be used, or the method's library is missing.
        OptionError, TargetError: As ``inject``.
    """
    out = Path(out)
    finished = finished_cola(settings, out)
    if finished is not None:
        return finished
    plain = _plain(settings)
    method = settings.make_method()
    _check_library(method, settings)
    corpus = load_corpus(settings.data)
    with _quiet():
        tokenizer = _tokenizer(settings.model)
        set_seed(settings.seed)  # the head is the same whatever the method
        model = _model(settings.model)
    targets = _targets(model, settings.targets)
    total = sum(p.numel() for p in model.parameters())
    train, dev = (_encode(tokenizer, part, settings.max_length) for part in (corpus.train, corpus.dev))
    collator = DataCollatorWithPadding(tokenizer)
    if settings.base == "nf4":
        quantize(model.to("cuda" if torch.cuda.is_available() else "cpu"), targets)  # where the Trainer has it, too
    context = _context(model, targets, train, collator, settings) if method.needs_context else None
    inject(model, method, targets, trainable=_heads(model), seed=settings.seed, context=context)
    trainable = _trainable_parameters(model, method)

    steps_per_epoch = math.ceil(len(train) / settings.batch_size)
    watch = _Watch(settings, steps_per_epoch, progress, out.name)
    recorder = RecorderCallback(
        out,
        settings.record_modules or targets,
        every(settings.record_every),
        method=method.name,
        info={"experiment": "cola", "settings": plain, "corpus": corpus.name},
        resume=True,  # the settings are the same, and W₀ is compared
    )
    arguments = TrainingArguments(
        output_dir=str(out / TRAINING),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=4 * settings.batch_size,
        learning_rate=settings.rate(),
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(settings.warmup_ratio * settings.epochs * steps_per_epoch),
        weight_decay=settings.weight_decay,
        eval_strategy="epoch",
        logging_strategy="steps",
        logging_steps=settings.record_every,
        save_strategy="no",  # the watch asks for it, at the end of an epoch
        save_total_limit=1,
        seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    reset_peak()
    with _quiet():
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=dev,
            data_collator=collator,
            compute_metrics=_matthews,
            callbacks=[recorder, watch],
        )
        trainer.make_optimizer = _optimizer_of(method, model, targets, arguments)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            trainer.train(resume_from_checkpoint=_last_state(out / TRAINING))
        finally:
            recorder.close()
            watch.close()
    result = _result(settings, out, trainable, trainable / total, trainer.state.log_history, len(dev), watch)
    write_text(out / RESULT, json.dumps({"settings": plain, "result": asdict(result)}, indent=1))
    shutil.rmtree(out / TRAINING, ignore_errors=True)
    return result


def check_cola(runs: Sequence[ColaSettings]) -> None:
    """Raise what would stop one of these runs before it trains: its options, shapes, targets, library, data or model.

    Arguments:
        runs: They differ in method, options and seed alone; data and model are loaded once.

    Raises:
        OptionError, TargetError, DataError: As ``train_cola``.
    """
    if not runs:
        return
    methods = [run.make_method() for run in runs]
    for method in methods:
        _check_library(method, runs[0])
    load_corpus(runs[0].data)
    with _quiet():
        _tokenizer(runs[0].model)
        model = _model(runs[0].model)
    modules = dict(model.named_modules())
    for name in _targets(model, runs[0].targets):
        for method in dict.fromkeys(methods):
            try:
                method.check_shape(*linear_shape(modules[name]), name)
            except OptionError as error:
                raise OptionError(f"{method.name}: {error}") from None


def finished_cola(settings: ColaSettings, out: Path) -> ColaResult | None:
    """Return the result of a finished run with these settings; None where there is work to do.

    Raises:
        RecordError: The folder holds something else.
    """
    return _finished(out, _plain(settings))


class _Trainer(Trainer):
    """A Trainer for any method: with the method's optimizer where it has one, and for layers that share tensors.

    The learning-rate schedule scales every group of the optimizer.
    """

    make_optimizer: Callable[[], torch.optim.Optimizer] | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None and self.make_optimizer is not None:
            self.optimizer = self.make_optimizer()
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # transformers refuses to write a tensor under two names; once is enough, as the layers still share it when
        # the state is loaded again.
        whole = {} if self.model is None else self.model.state_dict()
        same = repeated(whole)
        if same and state_dict is None:
            state_dict = {name: value for name, value in whole.items() if name not in same}
        super()._save(output_dir, state_dict)


def _optimizer_of(
    method: Method, model: nn.Module, targets: Sequence[str], arguments: TrainingArguments
) -> Callable[[], torch.optim.Optimizer] | None:
    """What makes the method's own optimizer; None where the Trainer's does."""
    if isinstance(method, GaLore):
        return lambda: galore_optimizer(
            model,
            method,
            targets,
            arguments.learning_rate,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            eps=arguments.adam_epsilon,
            weight_decay=arguments.weight_decay,
        )
    if method.rate_factors():
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        return lambda: kind(parameter_groups(model, arguments.learning_rate, arguments.weight_decay), **options)
    return None


def _check_library(method: Method, settings: ColaSettings) -> None:
    if isinstance(method, GaLore):
        load_galore()
    if settings.base == "nf4":
        load_bitsandbytes()
        if not method.injects:
            raise OptionError(f"{method.name} trains the matrices themselves, which a base in 4 bits cannot be")


class _Watch(TrainerCallback):
    """Times the epochs, without their evaluation, saves a state to go on from, and shows one progress bar."""

    def __init__(self, settings: ColaSettings, steps_per_epoch: int, progress: bool, label: str) -> None:
        self.seconds: list[float] = []
        self._start = 0.0
        self._settings, self._steps, self._progress, self._label = settings, steps_per_epoch, progress, label
        self._bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(
            total=self._settings.epochs * self._steps,
            initial=state.global_step,
            desc=self._label,
            unit="step",
            disable=not self._progress,
        )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        # Saved after the epoch's evaluation, which draws random numbers: so a run goes on to the very same weights.
        epoch = round(state.epoch)
        control.should_save = epoch % self._settings.save_every == 0 and epoch < self._settings.epochs

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self._bar is not None and metrics:
            self._bar.set_postfix(epoch=f"{state.epoch:.0f}", mcc=f"{metrics['eval_mcc']:.3f}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _plain(settings: ColaSettings) -> dict[str, Any]:
    """The settings as they are kept and compared: what is None stands for what is used."""
    plain = asdict(settings) | {"options": settings.make_method().options(), "learning_rate": settings.rate()}
    if not settings.make_method().needs_context:
        del plain["context_batches"]
    if settings.base == "full":
        del plain["base"]  # there were runs before there was a choice
    if settings.data not in ("builtin", "hub"):
        plain["data"] = Path(settings.data).resolve().name  # no path of this machine goes into a record
    if settings.model is not None and Path(settings.model).is_dir():
        plain["model"] = Path(settings.model).resolve().name
    cleaned: dict[str, Any] = json.loads(json.dumps(plain))
    return cleaned


def _finished(out: Path, plain: dict[str, Any]) -> ColaResult | None:
    """The result of a finished run with these settings; None where there is work to do."""
    if (out / RESULT).is_file():
        try:
            kept = json.loads((out / RESULT).read_text(encoding="utf-8"))
            there = kept["settings"]
            result = ColaResult(**{"rank": there["options"].get("rank")} | kept["result"])
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{out / RESULT}: is damaged ({error})") from None
        _same_settings(out, there, plain)
        return result
    if (out / MANIFEST).is_file():
        _same_settings(out, read_manifest(out).info.get("settings", {}), plain)
    elif out.exists():
        foreign = sorted(path.name for path in out.iterdir() if path.name not in (TRAINING, BASE, CHECKPOINTS, LOCK))
        if foreign:
            raise RecordError(f"{out}: holds {foreign[0]!r} and is no run; choose another folder, or a new one")
    return None


def _same_settings(out: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in dict.fromkeys([*wanted, *there]):
        value = wanted.get(name)
        if there.get(name) != value:
            raise RecordError(
                f"{out}: holds another run ({name} is {there.get(name)!r}, not {value!r}); choose another folder"
            )


def _last_state(folder: Path) -> str | None:
    """The newest state of the Trainer that was written whole: its own description is written last."""
    states = []
    for path in folder.glob("checkpoint-*"):
        try:
            step = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        states.append((step, str(path)))
    return max(states)[1] if states else None


def _tokenizer(model: str | None) -> Any:
    source = str(BUILTIN / "model") if model is None else model
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: no tokenizer can be loaded ({_first_line(error)})") from None


def _model(model: str | None) -> nn.Module:
    source = str(BUILTIN / "model") if model is None else model
    try:
        loaded: nn.Module = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source}: no model can be loaded; wanted is a name on the hub, or a folder with config.json and "
            f"model.safetensors ({_first_line(error)})"
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


def _trainable_parameters(model: nn.Module, method: Method) -> int:
    if not method.injects:
        return sum(p.numel() for p in model.parameters())
    heads = tuple(name + "." for name in _heads(model))
    return sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and not n.startswith(heads))


def _context(
    model: nn.Module, targets: Sequence[str], train: list[dict[str, Any]], collator: Any, settings: ColaSettings
) -> dict[str, torch.Tensor]:
    """The covariance of every target's inputs over training sentences, chosen by the seed, under the model as it is."""
    from deltaw.adapters import input_covariances

    size = settings.batch_size
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    starts = range(0, min(len(order), settings.context_batches * size), size)
    return input_covariances(
        model, targets, (collator([train[i] for i in order[start : start + size]]) for start in starts)
    )


def _encode(tokenizer: Any, part: tuple[list[str], list[int]], max_length: int) -> list[dict[str, Any]]:
    sentences, labels = part
    limit = min(max_length, tokenizer.model_max_length)
    rows = tokenizer(sentences, truncation=True, max_length=limit, return_token_type_ids=False)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(rows["input_ids"], rows["attention_mask"], labels, strict=True)
    ]


def _matthews(prediction: Any) -> dict[str, float]:
    from sklearn.metrics import matthews_corrcoef

    return {"mcc": float(matthews_corrcoef(prediction.label_ids, np.argmax(prediction.predictions, axis=-1)))}


def _result(
    settings: ColaSettings, out: Path, trainable: int, share: float, log: list[Any], n_dev: int, watch: _Watch
) -> ColaResult:
    scores = [(entry["eval_mcc"], round(entry["epoch"])) for entry in log if "eval_mcc" in entry]
    best, epoch = max(scores, key=lambda pair: (pair[0], -pair[1]))
    return ColaResult(
        method=settings.method,
        out=out.name,
        trainable=trainable,
        share=share,
        best_mcc=best,
        best_epoch=epoch,
        final_mcc=scores[-1][0],
        n_dev=n_dev,
        seconds_per_epoch=float(np.median(watch.seconds)) if watch.seconds else math.nan,
        peak_megabytes=peak_megabytes(),
        learning_rate=settings.rate(),
        epochs=settings.epochs,
        seed=settings.seed,
        rank=settings.make_method().options().get("rank"),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the notices of transformers (a new head, say) out of the output while its functions run."""
    before = transformers_logging.get_verbosity()
    quieter: Any = transformers_logging  # its functions are not typed
    quieter.set_verbosity_error()
    quieter.disable_progress_bar()
    try:
        yield
    finally:
        quieter.set_verbosity(before)
        quieter.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


__all__ = ["LEARNING_RATES", "ColaResult", "ColaSettings", "Corpus", "train_cola"]

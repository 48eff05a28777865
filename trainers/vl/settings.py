"""The settings of a run of the VL experiment."""

from dataclasses import dataclass
from typing import Any

from deltaw.adapters.errors import OptionError
from deltaw.trainers.settings import Settings, without_path
from deltaw.trainers.vl.examples import TASKS

BLOCKS = ("encoder", "decoder", "cross")
KINDS = ("query", "key", "value", "output", "up", "down")
# Where nothing is given: with the built-in model, and with another, where they are DoRA's (Table 9) and, for full
# fine-tuning's learning rate, VL-Adapter's.
LEARNING_RATES = {"builtin": (5e-4, 3e-3), "other": (1e-4, 1e-3)}  # where all weights train, adapters
RANKS = {"builtin": 8, "other": 128}
BATCH_SIZES = {"builtin": 32, "other": 300}


@dataclass(frozen=True, kw_only=True)
class VLSettings(Settings):
    """One run of the VL experiment. The defaults are DoRA's for VL-BART on image-text tasks.

    Liu et al. 2024, DoRA, Table 9: AdamW, linear decay, warm-up ratio 0.1, batch 300, learning rate 1e-3, 20 epochs,
    rank 128, alpha 128, no dropout. The table says that query and key are adapted, the paper's figures show query and
    value; the default is what the figures show, ``kinds=("query", "key")`` what the table says. The four checkpoints
    are the three intermediate steps and the last of its Figure 2. Weight decay is 0, as the table names none;
    the authors' code has 0.01 (``VL-T5/src/param.py``), which also acts on the magnitudes.

    The projection of the features and the positions are new, so they are trained with any method. VL-Adapter's LoRA
    trains BART's biases too; here they stay as they are.

    Arguments:
        options: By default rank 128, alpha 128 for every method that has them; 8 and 8 with the built-in model.
        model: A BART, by folder or by name on the hub; ``None`` for the built-in one.
        vision: Precomputed features or a picture encoder, see ``load_features``; ``None`` for the built-in encoder.
        data: See ``load_vl_corpus``.
        tasks: Some of ``TASKS``; ``None`` for all that the data have.
        where: The blocks that are adapted: "encoder" and "decoder" (their self-attention), "cross" attention.
        kinds: The matrices in them that are adapted: query, key, value, output; of encoder and decoder up and down.
        targets: Glob patterns of the adapted modules, instead of ``where`` and ``kinds``.
        learning_rate: ``None`` for the default of the method: see ``LEARNING_RATES``.
        batch_size: Of one task each; ``None`` for 300, or 32 with the built-in model.
        answer_length: Longer answers are cut to this many tokens, and no longer ones are written.
        checkpoints: How many, evenly spaced, the last at the end.
        record_every: Steps between checkpoints, instead.
        limit: At most so many training examples a task.
        dev_limit: At most so many development examples a task; ``None`` with a limit for a quarter of it.
        eval_every: Epochs between two evaluations, in which all answers are written; there is one at the end.
        beams: Of the search for an answer; 1 takes the likeliest word each time. VL-Adapter has 5.
        The others: See ``Settings``.
    """

    vision: str | None = None
    data: tuple[str, ...] = ("builtin",)
    tasks: tuple[str, ...] | None = None
    where: tuple[str, ...] = BLOCKS
    kinds: tuple[str, ...] = ("query", "value")
    epochs: int = 20
    batch_size: int | None = None
    warmup_ratio: float = 0.1
    max_length: int = 128
    answer_length: int = 40
    checkpoints: int = 4
    record_every: int | None = None
    limit: int | None = None
    dev_limit: int | None = None
    eval_every: int = 5
    beams: int = 1
    save_every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least_one("answer_length", "checkpoints", "record_every", "limit", "dev_limit", "eval_every", "beams")
        for name, known in (("tasks", TASKS), ("where", BLOCKS), ("kinds", KINDS)):
            given = getattr(self, name)
            if given is None:
                continue
            if isinstance(given, str) or not given:
                raise OptionError(f"{name} must be one or several of {', '.join(known)}, not {given!r}")
            for one in given:
                if one not in known:
                    raise OptionError(f"{name} has no {one!r}; choose from {', '.join(known)}")

    @property
    def _scale(self) -> str:
        return "builtin" if self.model is None else "other"

    def standard_options(self) -> dict[str, Any]:
        """Rank and alpha."""
        return {"rank": RANKS[self._scale], "alpha": float(RANKS[self._scale])}

    def standard_rates(self) -> tuple[float, float]:
        """See ``LEARNING_RATES``."""
        return LEARNING_RATES[self._scale]

    def batch(self) -> int:
        """The batch size that is used."""
        return self.batch_size or BATCH_SIZES[self._scale]

    def plain(self) -> dict[str, Any]:
        """As ``Settings.plain``."""
        vision = "builtin" if self.vision is None else self.vision
        encoder, at_sign, weights = vision.partition("@")
        return super().plain() | {
            "data": [without_path(source) for source in self.data],
            "vision": f"{encoder}@{without_path(weights)}" if at_sign else without_path(vision),
            "batch_size": self.batch(),
        }

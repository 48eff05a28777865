"""The settings of a run on CoLA."""

from dataclasses import dataclass
from typing import Any

from deltaw.adapters.errors import OptionError
from deltaw.trainers.settings import Settings, without_path

# Learning rates where none is given: (where all weights train, adapters).
LEARNING_RATES = {
    "builtin": (3e-4, 2e-3),  # found on the built-in model; see docs/builtin.md
    "other": (2e-5, 4e-4),  # RoBERTa's own grid for GLUE; LoRA, Table 9, for RoBERTa-base on CoLA
}


@dataclass(frozen=True, kw_only=True)
class ColaSettings(Settings):
    """One run on CoLA. The defaults are LoRA's for RoBERTa-base, which BoRA A.2 uses.

    Hu et al. 2022, Table 9: AdamW, linear decay, warm-up ratio 0.06, batch 32, learning rate 4e-4, 80 epochs, rank 8 on
    query and value, alpha 8 (the authors' script has 16; the paper's table counts here). Weight decay is 0: the table
    names none, and decay would shrink DoRA's and BoRA's magnitudes by itself, which is the very thing measured.

    Arguments:
        options: The method's options; by default rank 8, alpha 8 for every method that has them.
        model: A folder or a name on the hub; ``None`` for the built-in model, which goes with the built-in data.
        data: "builtin", "hub", or a folder (see ``load_corpus``).
        targets: Glob patterns of the adapted modules; ``None`` for all query and value matrices.
        learning_rate: ``None`` for the default of the method: see ``LEARNING_RATES``.
        group_by_length: Make batches of sentences of about the same length, which need less padding; the order stays
            random otherwise (transformers' ``LengthGroupedSampler``).
        record_every: Steps between checkpoints.
        The others: See ``Settings``.
    """

    data: str = "builtin"
    epochs: int = 80
    batch_size: int = 32
    warmup_ratio: float = 0.06
    max_length: int = 128
    group_by_length: bool = False
    record_every: int = 20
    save_every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least_one("record_every")
        if self.model is None and self.data != "builtin":
            raise OptionError(f"data {self.data!r} needs a model: give its name or folder, for example roberta-base")

    def standard_options(self) -> dict[str, Any]:
        """Rank 8 and alpha 8."""
        return {"rank": 8, "alpha": 8.0}

    def standard_rates(self) -> tuple[float, float]:
        """See ``LEARNING_RATES``."""
        return LEARNING_RATES["builtin" if self.model is None else "other"]

    def plain(self) -> dict[str, Any]:
        """As ``Settings.plain``."""
        plain = super().plain() | {"data": self.data if self.data == "hub" else without_path(self.data)}
        if not self.group_by_length:
            del plain["group_by_length"]  # there were runs before there was a choice
        return plain

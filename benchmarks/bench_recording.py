"""What a recorder costs: training steps with and without it, in turn, in one process.

The model is a RoBERTa of 6 layers of width 384, MiniLM's shape, with random weights; a batch has 32 sentences of 16
tokens; query and value are recorded. A block is as many steps as lie between two checkpoints, the first of them
recorded, or four where each is; it ends when all is written, so that what the background does counts as well. Blocks
with and without a recorder take turns, and so does which of the two comes first; what counts is the median of their
differences, because other work on the machine slows both alike. The time spent inside the recorder stands beside it: it
lacks what a recording does to the steps after it, but hardly any noise gets into it.
"""

import argparse
import copy
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from deltaw.adapters import BoRA, inject
from deltaw.trainers import Recorder

BATCH, TOKENS = 32, 16
TARGETS = ["*.query", "*.value"]
CASES: list[tuple[str, bool, int, int, float | None, dict[str, Any]]] = [
    # name, whether an adapter, steps between checkpoints, blocks with and without, the share that may be added, options
    ("bora, rank 8", True, 20, 16, 0.02, {}),
    ("bora, rank 8", True, 1, 16, 0.10, {}),
    ("bora, rank 8, in the background", True, 20, 16, None, {"background": 2}),
    ("bora, rank 8, in the background", True, 1, 16, None, {"background": 2}),
    ("bora, rank 8, live numbers", True, 20, 8, None, {"live": True}),
    ("ft, whole matrices", False, 20, 4, None, {}),
    ("ft, whole matrices", False, 1, 8, None, {}),
    ("ft, whole matrices, in the background", False, 20, 4, None, {"background": 2}),
    ("ft, whole matrices, in the background", False, 1, 8, None, {"background": 2}),
    ("ft, whole matrices, in bfloat16", False, 1, 8, None, {"dtype": torch.bfloat16}),
    ("ft, whole matrices, live numbers", False, 20, 4, None, {"live": True}),
]


def base_model() -> nn.Module:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=1000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    return RobertaForSequenceClassification(config)


def stepper(model: nn.Module) -> Callable[[], float]:
    """A training step that returns its loss, as a loop with a progress bar would want it."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (BATCH, TOKENS), generator=generator)
    labels = torch.randint(0, 2, (BATCH,), generator=generator)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train()

    def step() -> float:
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def block_seconds(step: Callable[[], float], recorder: Recorder | None, first: int, length: int) -> tuple[float, float]:
    """Seconds for ``length`` steps, numbered from ``first``, and how many of them inside the recorder."""
    inside = 0.0
    start = time.perf_counter()
    for number in range(first, first + length):
        loss = step()
        if recorder is not None:
            before = time.perf_counter()
            recorder.step(number, loss=loss)
            inside += time.perf_counter() - before
    if recorder is not None:
        recorder.flush()
    return time.perf_counter() - start, inside


def measure(model: nn.Module, interval: int, blocks: int, options: dict[str, Any]) -> tuple[float, float, float, int]:
    """Return seconds a step without, what a recorder adds to it, the part inside the recorder, bytes a checkpoint."""
    step = stepper(model)
    plain: list[float] = []
    added: list[float] = []
    inside: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Recorder(model, folder, TARGETS, lambda step: step % interval == 1 % interval, **options) as recorder,
    ):
        for _ in range(3):
            step()
        recorder.record(0)
        length = interval if interval > 1 else 4
        for number in range(blocks):
            order = (None, recorder) if number % 2 else (recorder, None)
            seconds = {used: block_seconds(step, used, 1 + number * length, length) for used in order}
            plain.append(seconds[None][0] / length)
            added.append((seconds[recorder][0] - seconds[None][0]) / length)
            inside.append(seconds[recorder][1] / length)
        size = max(path.stat().st_size for path in Path(folder, "checkpoints").iterdir())
    return statistics.median(plain), statistics.median(added), statistics.median(inside), size


def rows(scale: float = 1.0) -> list[dict[str, Any]]:
    """The comparisons, each with its goal; ``scale`` makes them longer or shorter."""
    base, result = base_model(), []
    for name, adapters, interval, blocks, allowed, options in CASES:
        model = copy.deepcopy(base)
        if adapters:
            inject(model, BoRA(rank=8), targets=TARGETS, trainable=["classifier*"], seed=0)
        plain, added, inside, size = measure(model, interval, max(2, round(scale * blocks)), options)
        ratio = plain / (plain + added)
        goal = None if allowed is None else 1 / (1 + allowed)
        result.append(
            {
                "name": f"recording {name}, every {f'{interval} steps' if interval > 1 else 'step'}",
                "ours_seconds": plain + added,
                "other_name": "not recording",
                "other_seconds": plain,
                "ratio": ratio,
                "goal": goal,
                "met": None if allowed is None else added <= allowed * plain,
                "note": f"adds {100 * added / plain:.1f} %"
                + ("" if allowed is None else f" (at most {100 * allowed:.0f} %)")
                + f", {100 * inside / plain:.1f} % inside the recorder, {size / 1e3:.0f} kB a checkpoint",
            }
        )
        del model
        gc.collect()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    print(tabulate(rows(parser.parse_args().scale), headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()

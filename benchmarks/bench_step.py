"""One training step with each method, against PEFT in the same process: a 4-layer roberta-base-shaped model."""

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from deltaw.adapters import METHODS, create, inject

TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
GLOBS = ["*.query", "*.key", "*.value", "*.dense"]
SEQUENCE = 64


def model() -> nn.Module:
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    config = RobertaConfig(
        num_hidden_layers=4, vocab_size=1000, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return RobertaModel(config, add_pooling_layer=False)


def ours(base: nn.Module, method: str, **options: Any) -> nn.Module:
    return inject(copy.deepcopy(base), create(method, rank=8, **options), targets=GLOBS, seed=0)


def theirs(base: nn.Module, **options: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=8, target_modules=TARGETS, **options)
    return get_peft_model(copy.deepcopy(base), config)


def stepper(net: nn.Module, tokens: int) -> Callable[[], None]:
    ids = torch.randint(5, 1000, (tokens // SEQUENCE, SEQUENCE), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)
    net.train()

    def step() -> None:
        net(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds a step, the median of rounds in which every contender runs once, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


GOALS = [  # (ours, other, tokens, the ratio other / ours that is wanted at least)
    ("lora", "peft lora", 256, 1.0),
    ("lora", "peft lora", 1024, 1.0),
    ("dora-row", "peft dora", 256, 1.4),
    ("dora-row", "peft dora", 1024, 1.0),
    ("bora", "lora", 256, 1 / 1.2),
    ("bora", "lora", 1024, 1 / 1.2),
    ("sbora-fa", "lora", 256, 1.0),
    ("sbora-fa", "lora", 1024, 1.0),
    ("dual-lora", "lora", 256, None),
    ("dual-lora", "lora", 1024, None),
    ("dora", "lora", 256, None),
    ("dora", "lora", 1024, None),
]


def rows(rounds: int = 15) -> list[dict[str, Any]]:
    """The comparisons, each with its goal."""
    base, result = model(), []
    names = [name for name in METHODS if create(name).injects]
    for tokens in (256, 1024):
        nets = {name: ours(base, name) for name in names}
        nets |= {"bora full gradient": ours(base, "bora", detach_norm=False)}
        nets |= {"peft lora": theirs(base), "peft dora": theirs(base, use_dora=True)}
        seconds = measure({name: stepper(net, tokens) for name, net in nets.items()}, rounds)
        print({name: f"{1000 * value:.0f} ms" for name, value in seconds.items()})
        for mine, other, at, goal in GOALS:
            if at == tokens:
                ratio = seconds[other] / seconds[mine]
                result.append(
                    {
                        "name": f"step {mine}, {tokens} tokens",
                        "ours_seconds": seconds[mine],
                        "other_name": other,
                        "other_seconds": seconds[other],
                        "ratio": ratio,
                        "goal": goal,
                        "met": None if goal is None else ratio >= goal,
                    }
                )
        del nets
        gc.collect()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    print(tabulate(rows(parser.parse_args().rounds), headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()

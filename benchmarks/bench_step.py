"""One training step with each method, against PEFT in the same process: a 4-layer roberta-base-shaped model.

Each comparison has its two alone in memory, and steps them in turn: the ratio is the median of the rounds' ratios, so a
machine that slows down takes both along. The optimizer is the Trainer's own, fused AdamW. Memory is the peak of what
torch's allocator hands out during one step beyond what is there before it: activations, what is kept for the backward
pass, gradients.
"""

import argparse
import copy
import gc
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from deltaw.adapters import create, inject
from deltaw.adapters.methods.registry import options_of

TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
GLOBS = ["*.query", "*.key", "*.value", "*.dense"]
SEQUENCE = 64
OPTIONS = {"pissa": {"iterations": 1}, "dora-row full gradient": {"detach_norm": False}}


def model() -> nn.Module:
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    config = RobertaConfig(
        num_hidden_layers=4, vocab_size=1000, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return RobertaModel(config, add_pooling_layer=False)


def ours(base: nn.Module, name: str, rank: int) -> nn.Module:
    key = name.removesuffix(" full gradient")
    ranked = {"rank": rank} if "rank" in options_of(key) else {}  # OFT has blocks of 32 whatever the rank
    method = create(key, **ranked, **OPTIONS.get(name, {}))
    return inject(copy.deepcopy(base), method, targets=GLOBS, seed=0)


def theirs(base: nn.Module, name: str, rank: int) -> nn.Module:
    import peft

    configs: dict[str, Callable[[], Any]] = {
        "peft lora": lambda: peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS),
        "peft dora": lambda: peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, use_dora=True),
        "peft pissa": lambda: peft.LoraConfig(
            r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights="pissa_niter_1"
        ),
        "peft vera": lambda: peft.VeraConfig(r=rank, target_modules=TARGETS),
        "peft hira": lambda: peft.HiraConfig(r=rank, target_modules=TARGETS),
        "peft randlora": lambda: peft.RandLoraConfig(r=rank, randlora_alpha=rank, target_modules=TARGETS),
        "peft delora": lambda: peft.DeloraConfig(r=rank, target_modules=TARGETS),
        "peft adalora": lambda: peft.AdaLoraConfig(
            init_r=rank, target_r=rank, lora_alpha=rank, orth_reg_weight=0.0, total_step=10**6, target_modules=TARGETS
        ),
        "peft oft": lambda: peft.OFTConfig(r=0, oft_block_size=32, use_cayley_neumann=False, target_modules=TARGETS),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(copy.deepcopy(base), configs[name]())


def stepper(net: nn.Module, tokens: int) -> Callable[[], None]:
    ids = torch.randint(5, 1000, (tokens // SEQUENCE, SEQUENCE), generator=torch.Generator().manual_seed(0))
    where = next(net.parameters()).device
    ids = ids.to(where)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4, fused=True)
    net.train()

    def step() -> None:
        net(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if where.type != "cpu":
            torch.accelerator.synchronize(where)  # else only the launches are timed

    return step


def measure(mine: Callable[[], None], other: Callable[[], None], rounds: int) -> tuple[float, float, float]:
    """Seconds a step of the one and of the other, and other / mine: medians over rounds, each round's own ratio."""
    seconds: dict[Callable[[], None], list[float]] = {mine: [], other: []}
    for step in (mine, other, mine, other):
        step()
    for _ in range(rounds):
        for step in (mine, other):
            start = time.perf_counter()
            step()
            seconds[step].append(time.perf_counter() - start)
    ratios = [theirs / ours for ours, theirs in zip(seconds[mine], seconds[other], strict=True)]
    return statistics.median(seconds[mine]), statistics.median(seconds[other]), statistics.median(ratios)


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that is allocated at once during a step, beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


# Ours, the other, and by (rank, tokens) the ratio of times other / ours that is wanted at least; None: no goal.
SETTINGS = [(8, 256), (8, 1024), (64, 256), (64, 1024)]
AGAINST_PEFT = [
    ("lora", "peft lora"),
    ("dora-row", "peft dora"),
    ("pissa", "peft pissa"),
    ("vera", "peft vera"),
    ("hira", "peft hira"),
    ("randlora", "peft randlora"),
    ("delora", "peft delora"),
    ("adalora", "peft adalora"),
    ("oft", "peft oft"),
]
AGAINST_LORA = ["dora", "bora", "sbora-fa", "mora", "hira", "dual-lora", "dora-row", "dora-row full gradient"]
AGAINST_LORA += ["delora", "map", "adalora", "oft"]
GOALS = {
    ("dora-row", "peft dora", 8, 256): 1.4,
    ("bora", "lora", 8, 256): 1 / 1.15,
    ("bora", "lora", 8, 1024): 1 / 1.15,
    ("sbora-fa", "lora", 8, 256): 1.0,
    ("sbora-fa", "lora", 8, 1024): 1.0,
}


def comparisons() -> Iterator[tuple[str, str]]:
    yield from AGAINST_PEFT
    yield from ((name, "lora") for name in AGAINST_LORA)


def rows(rounds: int = 7) -> list[dict[str, Any]]:
    """The comparisons, each with its goal; with 256 tokens, whose steps are short, in three times as many rounds."""
    base, result = model(), []
    for (rank, tokens), (mine, other) in itertools.product(SETTINGS, comparisons()):
        steps = [stepper((theirs if "peft" in name else ours)(base, name, rank), tokens) for name in (mine, other)]
        ours_seconds, other_seconds, ratio = measure(*steps, rounds if tokens > 256 else 3 * rounds)
        memory, other_memory = (peak_bytes(step) for step in steps)
        goal = GOALS.get((mine, other, rank, tokens), 1.0 if "peft" in other else None)
        note = f"peak memory {memory / 1e6:.0f} MB, the other's {other_memory / 1e6:.0f} MB"
        result.append(
            {
                "name": f"step {mine}, rank {rank}, {tokens} tokens",
                "ours_seconds": ours_seconds,
                "other_name": other,
                "other_seconds": other_seconds,
                "ratio": ratio,
                "goal": goal,
                "met": None if goal is None else ratio >= goal,
                "note": note if other_memory / memory >= 0.995 or "peft" not in other else f"{note}: higher",
            }
        )
        del steps
        gc.collect()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    print(tabulate(rows(parser.parse_args().rounds), headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()

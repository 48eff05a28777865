"""The size of a record, before training starts."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from deltaw.trainers.schedules import Countable, Schedule
from deltaw.trainers.thinning import LONGEST_WALK

# As safetensors names and orders them: the wider ones first, then by name.
DTYPES = {
    torch.float64: ("F64", 8),
    torch.float32: ("F32", 4),
    torch.bfloat16: ("BF16", 2),
    torch.float16: ("F16", 2),
    torch.int64: ("I64", 8),
    torch.int32: ("I32", 4),
    torch.int16: ("I16", 2),
    torch.int8: ("I8", 1),
    torch.uint8: ("U8", 1),
    torch.bool: ("BOOL", 1),
}
Spec = tuple[Sequence[int], torch.dtype]


@dataclass(frozen=True)
class Budget:
    """Bytes on the disk, up to the last digits of the scalars.

    Arguments:
        base: W₀, and what the methods never change.
        checkpoint: One checkpoint.
        checkpoints: How many are planned at most; ``None`` where nobody said how long training goes on.
    """

    base: int
    checkpoint: int
    checkpoints: int | None

    @property
    def total(self) -> int | None:
        """All checkpoints with the base, in bytes; ``None`` where their number is not known."""
        return None if self.checkpoints is None else self.base + self.checkpoints * self.checkpoint

    def __str__(self) -> str:
        if self.total is None:
            return f"{amount(self.checkpoint)} a checkpoint, {amount(self.base)} for the base"
        many = "checkpoint" if self.checkpoints == 1 else "checkpoints"
        return f"{amount(self.checkpoint)} a checkpoint, {self.checkpoints} {many} planned, {amount(self.total)} in all"


def amount(count: int) -> str:
    """Return a number of bytes for people.

    Example:
        >>> amount(950), amount(20_544), amount(14_500_000_000)
        ('950 B', '20.5 kB', '14.5 GB')
    """
    number, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.3g} {units[0]}"


def file_bytes(tensors: Mapping[str, Spec]) -> int:
    """Return the size of a safetensors file of these shapes and dtypes.

    Example:
        >>> file_bytes({"weight": ((2, 3), torch.float32)})
        96
    """
    header, place = {}, 0
    for name in sorted(tensors, key=lambda n: (-DTYPES[tensors[n][1]][1], n)):
        shape, dtype = tensors[name]
        kind, width = DTYPES[dtype]
        size = math.prod(shape) * width
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + place


def planned(when: Schedule, total_steps: int | None, keep: int | None) -> int | None:
    """Return how many checkpoints there will be at most, from step 0 to ``total_steps``; ``None``: nobody knows.

    A function that is no schedule of ours is not asked for more than a million steps.

    Example:
        >>> from deltaw.trainers import every
        >>> planned(every(50), 1000, None), planned(every(50), 1000, 8), planned(every(50), None, 8)
        (21, 8, 8)
    """
    if total_steps is None:
        return keep
    if isinstance(when, Countable):
        hits = when.before(total_steps + 1)
    elif total_steps < LONGEST_WALK:
        hits = sum(1 for step in range(total_steps + 1) if when(step))
    else:
        return keep
    return hits if keep is None else min(hits, keep)

"""Notices where the weight below an adapter moves, so that the adapter's tensors no longer tell ΔW."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltaw.adapters.errors import RecordError
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.peft.live import adapter_tensors
from deltaw.adapters.peft.names import BASE_LAYER
from deltaw.adapters.peft.recorded import PeftMethod
from deltaw.adapters.sharded import full, is_sharded
from deltaw.trainers.attention import PeftMatrix, base_below
from deltaw.trainers.distributed import local
from deltaw.trainers.gathering import Gathering
from deltaw.trainers.recorded_layers import Layer

FEW = 4  # directions of a sketch
ROUNDINGS = 4  # units in the last place of ‖W₀‖ + ‖ΔW‖ that merging and taking out again may leave, some times over
TAKEN_IN = 0.5  # of the update before: the share from which on a base has taken it in
DRIFT = 0.01  # of the update: what is left of adding and taking it out in every forward pass of PEFT's attention
TINY = 1e-300
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class BaseGuard:
    """Holds every layer that is recorded as its adapter against the record's W₀.

    ReLoRA adds the adapter to the weight below it and begins the adapter anew: recorded by its tensors alone, the run
    would have ΔW = 0. The check is a sum over the bits of the weight, which takes one pass over it. Only where that has
    changed the weights are compared: an adapter that was merged and taken out again (TRL merges it to generate) leaves
    a rounding behind, up to a few units of ‖W₀‖ + ‖ΔW‖ and in no direction. A base that has moved further, or along the
    update s·B A that the adapter had at the check before, has taken the adapter in. Nothing is merged into a layer of
    ``deltaw.adapters`` and taken out again, so there every change of a bit is a move. PEFT's layer over
    ``nn.MultiheadAttention`` merges and takes out in every forward pass, and the roundings add up: there a hundredth of
    the update goes on, and the first check compares in any case, as a resumed run may begin behind some passes.

    Arguments:
        layers: The recorded layers by name.
        gathering: Puts their weights together where they are cut up.
    """

    def __init__(self, layers: Mapping[str, Layer], gathering: Gathering) -> None:
        self._gathering = gathering
        self._layers = {name: layer for name, layer in layers.items() if layer.method is not None}
        self._sums: dict[str, int | None] = {
            name: None if isinstance(layer.module, PeftMatrix) else _sum_of_bits(layer)
            for name, layer in gathering.walk(self._layers)
        }
        self._sketches = {name: _sketch(layer) for name, layer in gathering.walk(self._layers)}

    def check(self, together: Callable[[Callable[[], Any]], Any], base_of: Callable[[str], dict[str, Tensor]]) -> None:
        """Raise where a weight has moved; collective where weights are sharded.

        Arguments:
            together: Has something done by the process that writes, with its result in all.
            base_of: Reads by module W₀ under "", and the method's constants.

        Raises:
            RecordError: It has moved by more than the rounding of its dtype; names the module.
        """
        with closing(self._moved()) as moved:
            for name, layer in moved:
                held = full(base_below(layer.module)).detach()
                sketches = [self._sketches[name], _sketch(layer)]
                together(partial(_compare_with, base_of, name, layer, held, sketches))
                self._sums[name] = _sum_of_bits(layer)  # the next merge leaves another rounding
        self._sketches = {name: _sketch(layer) for name, layer in self._gathering.walk(self._layers)}

    def _moved(self) -> Generator[tuple[str, Layer]]:
        for name, layer in self._gathering.walk(self._layers):
            if not getattr(layer.module, "merged", False) and _sum_of_bits(layer) != self._sums[name]:
                yield name, layer


def _sum_of_bits(layer: Layer) -> int:
    """Return the sum of a weight's entries read as integers, which every change of one entry changes."""
    weight = _below(layer)
    if not isinstance(weight, Tensor):
        return 0  # of a quantized layer that holds it in other tensors, into which nothing is merged
    part = local(weight.detach())
    total = part.contiguous().view(_INTEGERS[part.element_size()]).sum(dtype=torch.int64)
    if is_sharded(weight):
        torch.distributed.all_reduce(total)
    return int(total)


def _below(layer: Layer) -> Any:
    """The weight below an adapter as it is held; ``None`` of a layer that holds it in other tensors."""
    if isinstance(layer.module, PeftMatrix):
        return layer.module.stored
    plain = layer.module if isinstance(layer.module, AdaptedLayer) else layer.module.get_submodule(BASE_LAYER)
    return getattr(plain, "weight", None)


def _sketch(layer: Layer) -> Tensor:
    """Return s·B A Z, (out, few), with a fixed Z: enough to know s·B A again, in two thin products."""
    assert layer.method is not None
    if isinstance(layer.method, PeftMethod) or isinstance(layer.module, AdaptedLayer):
        return torch.zeros(1, FEW, dtype=torch.float64)  # what has moved further than a rounding is refused
    tensors = adapter_tensors(layer.module, layer.method, layer.adapter)
    A, B = (full(tensors[name]).double().cpu() for name in ("lora_A", "lora_B"))
    return getattr(layer.method, "scaling", 1.0) * (B @ (A @ _directions(A.shape[1])))


def _directions(columns: int) -> Tensor:
    """Return Z (columns, few), the same each time; the global random numbers are left as they are."""
    return torch.randn(columns, FEW, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _compare_with(
    base_of: Callable[[str], dict[str, Tensor]], name: str, layer: Layer, held: Tensor, sketches: Sequence[Tensor]
) -> None:
    record = base_of(name)
    held, expected = held.cpu().double(), record[""].double()
    if isinstance(layer.module, AdaptedLayer):
        if not torch.equal(held, expected):
            moved = float((held - expected).norm()) / (float(expected.norm()) or 1)
            raise RecordError(
                f"the frozen weight of {name!r} has moved by {moved:.1e} of its size since the record began, as where "
                "an optimizer was given it or other weights were loaded; the method's tensors no longer tell ΔW. Start "
                "another record, or train it as ft"
            )
        return
    if "start_A" in record:  # PiSSA: below the adapter is what it was not given
        scaling: float = getattr(layer.method, "scaling", 1.0)
        expected = expected - scaling * (record["start_B"].double() @ record["start_A"].double())
    weight, before = _below(layer), sketches[0]
    eps = torch.finfo(weight.dtype).eps if weight.dtype.is_floating_point else 0.0
    difference = held - expected
    moved, size = float(difference.norm()), float(expected.norm())
    update = float(before.norm()) / math.sqrt(FEW)  # ‖s·B A‖, on average
    along = float((difference @ _directions(held.shape[1])).mul(before).sum()) / max(float(before.square().sum()), TINY)
    allowed = ROUNDINGS * eps * (size + update)
    if isinstance(layer.module, PeftMatrix):
        allowed += DRIFT * max(float(sketch.norm()) for sketch in sketches) / math.sqrt(FEW)
    if not moved <= allowed or TAKEN_IN < along < 1 / TAKEN_IN:
        raise RecordError(
            f"the weight below PEFT's adapter of {name!r} has moved by {moved / (size or 1):.1e} of its size since the "
            "record began, as where an adapter is merged and begun anew (ReLoRA); its tensors no longer tell ΔW. Start "
            "another record after each merge"
        )

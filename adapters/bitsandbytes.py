"""A base in 4 bits (QLoRA): bitsandbytes' layers, and the adapted layer that leaves such a base as it is.

``docs/methods.md`` says why it is this library. It is imported where it is needed, so that what was trained over a
quantised base can be read without it.
"""

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from deltaw.adapters.errors import DataError
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.uncompiled import disabled_when_called

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_bitsandbytes() -> Any:
    """Return the package bitsandbytes.

    Raises:
        DataError: It is not installed; says how to.
    """
    # It deprecates what it calls itself, and reports that a kernel for inference, which is not used here, is missing.
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = log.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            log.setLevel(logging.ERROR)
            import bitsandbytes
    except ImportError as error:
        raise DataError(f"a 4-bit base needs the package bitsandbytes: pip install 'deltaw[quant]' ({error})") from None
    finally:
        log.setLevel(level)
    return bitsandbytes


def is_quantized(module: object) -> bool:
    """Whether it is one of bitsandbytes' 4-bit linear layers, ``quantize``'s or transformers'; told by its names."""
    return isinstance(module, nn.Linear) and any(
        c.__name__ == "Linear4bit" and c.__module__.startswith("bitsandbytes.") for c in type(module).__mro__
    )


def check_quantized(layer: nn.Module) -> None:
    """Raise where the library is missing or the layer, made but never moved to a device, is not quantised yet.

    Raises:
        DataError: Says what to do.
    """
    load_bitsandbytes()
    if getattr(layer.weight, "quant_state", None) is None:
        raise DataError("a Linear4bit of the model is not quantised yet; move the model to its device first")


def quantized_shape(layer: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a 4-bit linear layer."""
    check_quantized(layer)
    weight: Any = layer.weight
    rows, columns = weight.quant_state.shape
    return rows, columns


def compute_dtype(layer: nn.Module) -> torch.dtype:
    """Return the dtype a 4-bit linear layer computes in: the one it was given, else that of the weight it came from."""
    check_quantized(layer)
    weight: Any = layer.weight
    dtype: torch.dtype = getattr(layer, "compute_dtype", None) or weight.quant_state.dtype
    return dtype


@torch.no_grad()
def dequantized(layer: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """Return W₀ (out, in) of a 4-bit linear layer.

    Arguments:
        layer: The layer.
        dtype: Of the result; ``compute_dtype`` of the layer if left out.
    """
    library = load_bitsandbytes()
    dtype = dtype or compute_dtype(layer)
    weight: Any = layer.weight
    if getattr(weight.quant_state, "packing_format_for_cpu", False):
        layer.state_dict()  # the library then undoes the packing of an evaluation on the CPU
    rows, columns = quantized_shape(layer)
    state = copy.copy(weight.quant_state)
    state.dtype = dtype if dtype in DTYPES else torch.float32
    # The blocks run through the rows' ends. The library's AVX512 kernel (0.50.2) then takes constants of other blocks;
    # given one row a block, or all in one row, it cannot.
    blocks = rows * columns // state.blocksize
    state.shape = torch.Size(
        (blocks, state.blocksize) if blocks * state.blocksize == rows * columns else (1, rows * columns)
    )
    result: Tensor = library.functional.dequantize_4bit(weight.detach(), state)
    return result.reshape(rows, columns).to(dtype)


class QuantizedLayer(AdaptedLayer):
    """A 4-bit linear layer under a method: ``weight`` stays in 4 bits, ``base`` is W₀ dequantised.

    W₀ lives from the beginning to the end of a forward. What a method keeps of it for the backward is a note, and W₀ is
    dequantised again where the note is read; so no method needs to know. The method's tensors are in float32 unless the
    model is converted, and the layer computes in the dtype that the library's layer has for that.

    Arguments:
        source: A ``Linear4bit`` of bitsandbytes. The others are those of ``AdaptedLayer``.
    """

    _now: Tensor | None = None  # W₀ during a forward

    def _adopt(self, source: nn.Module) -> None:
        self._dtype = compute_dtype(source)
        dequantized(source)  # undoes a packing that only the source knows to undo
        super()._adopt(source)
        if self.bias is not None:
            self.bias.data = self.bias.data.to(self._dtype)  # as the library does in its first forward

    @property
    def base(self) -> Tensor:
        """W₀, (out, in), dequantised."""
        return dequantized(self, self._dtype) if self._now is None else self._now

    @property
    def base_dtype(self) -> torch.dtype:
        """The dtype that the layer computes in."""
        return self._dtype

    @disabled_when_called  # type: ignore[untyped-decorator] # ``uncompiled`` is not for tensors
    def forward(self, x: Tensor) -> Tensor:
        """Return x W'ᵀ + b, in the dtype of x; never compiled, for what is noted cannot be."""
        with self._held():
            if x.dtype == self._dtype or torch.is_autocast_enabled(x.device.type):
                return super().forward(x)
            return super().forward(x.to(self._dtype)).to(x.dtype)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Dequantise once, and let the graph keep notes instead."""
        self._now = self.base
        try:
            with torch.autograd.graph.saved_tensors_hooks(*_notes(self._now, self._dequantized_again)):
                yield
        finally:
            self._now = None

    def _make_residual(self) -> None:
        """Of a matrix in 4 bits there is none, whatever dtype the library packs these into."""
        self._residual, self._residual_of = None, None

    @property
    def residual(self) -> None:
        """None: it would be a coarse one."""

    def _dequantized_again(self) -> Tensor:
        return dequantized(self, self._dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._dtype = fn(torch.empty(0, dtype=self._dtype, device=self.weight.device)).dtype
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, value in self._quant_state.as_dict(packed=True).items():  # under Linear4bit's own names
            destination[f"{prefix}weight.{key}"] = value

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        unexpected = args[3]
        names = [name for name in state_dict if name.startswith(f"{prefix}weight.")]
        if names:
            kind, device = type(self._quant_state), self.weight.device
            self.weight.quant_state = kind.from_dict({name: state_dict[name] for name in names}, device)  # type: ignore[attr-defined]
            unexpected[:] = [name for name in unexpected if name not in names]

    @property
    def _quant_state(self) -> Any:
        return self.weight.quant_state  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Note:
    """The stand-in for W₀, or for a view of it, between forward and backward."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


def _notes(base: Tensor, again: Callable[[], Tensor]) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """Return the two hooks for ``saved_tensors_hooks``; only the first of them refers to ``base``.

    Arguments:
        base: W₀, (out, in), contiguous.
        again: Makes W₀ once more.
    """
    # Only the innermost hooks are asked, so ours have to ask those of gradient checkpointing or offloading themselves.
    keep, fetch = _hooks_in_force() or (_keep, _fetch)

    def pack(tensor: Tensor) -> Any:
        if _is_of(tensor, base):
            return _Note(tensor.size(), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)
        return keep(tensor)

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, _Note):
            return again().to(kept.dtype).as_strided(kept.size, kept.stride, kept.offset)
        fetched: Tensor = fetch(kept)
        return fetched

    return pack, unpack


def _keep(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor, tensor._version


def _fetch(kept: tuple[Tensor, int]) -> Tensor:
    tensor, version = kept
    if tensor._version != version:  # PyTorch itself looks after this only where there are no hooks
        raise RuntimeError(
            f"a tensor {tuple(tensor.shape)} needed for the gradient has been modified by an inplace operation: it is "
            f"at version {tensor._version}, not {version}"
        )
    return tensor


def _hooks_in_force() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    # No public name; where PyTorch drops this one, checkpointing around the layer keeps its activations.
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    hooks: tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None = top(False) if top else None
    return hooks


def _is_of(tensor: Tensor, base: Tensor) -> bool:
    """Whether it is W₀, a view of it, or all of it or a view in another precision, which is how autocast saves it."""
    storage = tensor.untyped_storage()
    if storage.data_ptr() == base.untyped_storage().data_ptr():
        return True
    if tensor.dtype == base.dtype or storage.nbytes() != base.numel() * tensor.element_size():
        return False
    place = tensor.size(), tensor.stride(), int(tensor.storage_offset())
    return tensor.is_floating_point() and torch.equal(tensor, base.to(tensor.dtype).as_strided(*place))

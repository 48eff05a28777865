"""The formats of quantised weights: of which tensors one is known, and how W is made of them.

    bitsandbytes nf4, fp4   W = c[code]·a of its block of numbers; a itself may be quantised: a = c₂[code]·a₂ + offset
    bitsandbytes int8       W = q·s·(1/127), s of its row
    FP8                     W = q·s, s of the matrix, its row, or its block
    GPTQ                    W = (q − z)·s, z and s of the group of its input
    AWQ                     as GPTQ, with eight numbers of a word in another order
    compressed-tensors      W = (q − z)·s, packed by rows, or int8
    MXFP4                   W = e2m1[code]·2^(s − 127), s of 32 numbers

Each is an exact reading of what is stored: the products are made in float32, and rounded once to the dtype that the
format names, as its own library does. Sizes are checked before anything is made.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.analysis.records.foreign.quantised.packing import AWQ_ORDER, FP4, nibbles, unpacked
from deltaw.analysis.records.storage.safetensors_file import torch_dtype
from deltaw.analysis.records.storage.tensors import Tensors

BNB_STATES = ("nf4", "fp4")
SIZES = 2**31  # rows, columns, a block: more is no matrix


class Wrong(ValueError):  # noqa: N818 # it never leaves this package
    """The tensors are not what the format says."""


@dataclass(frozen=True)
class Packed(ABC):
    """A matrix that several tensors are together.

    Arguments:
        tensors: Where they are.
        module: Whose it is.
        settings: The model's ``quantization_config``.
    """

    tensors: Tensors
    module: str
    settings: Mapping[str, Any]
    parts: ClassVar[tuple[str, ...]] = ()  # what stands after the module's name
    name: ClassVar[str] = ""
    end: ClassVar[str] = ".weight"  # of the matrix that they are

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of W, without reading it."""

    @property
    def dtype(self) -> torch.dtype:
        """Of W as the format's library gives it."""
        return torch.float32

    @abstractmethod
    def read(self, index: int | None = None) -> Tensor:
        """Return W, or one expert's."""

    def has(self, part: str) -> bool:
        """Whether there is such a part."""
        return self.module + part in self.tensors.names()

    def part(self, part: str, index: int | None = None) -> Tensor:
        """Return a part."""
        return self.tensors.read(self.module + part, index)

    def sides(self, part: str, count: int = 2) -> tuple[int, ...]:
        """Return a part's shape, of so many sides, none of them 0."""
        shape = self.tensors.shape(self.module + part)
        need(len(shape) == count and 0 not in shape, f"{part[1:]} is {shape}")
        return shape

    def number(self, key: str, among: Collection[int]) -> int | None:
        """Return a whole number of the settings, ``None`` where it is missing.

        Raises:
            Wrong: It is another than these.
        """
        found = self.settings.get(key)
        if found is None:
            return None
        need(type(found) is int and found in among, f"quantization_config has {key} {found!r:.20}")
        return int(found)


def need(condition: bool, what: str) -> None:
    """Raise unless it is so.

    Raises:
        Wrong: What is not as it should be.
    """
    if not condition:
        raise Wrong(what)


class Bitsandbytes4(Packed):
    """4 bits, nf4 or fp4, in blocks of numbers; ``absmax`` may be 8 bits, in blocks of its own."""

    name = "bitsandbytes, 4 bits"
    parts = tuple(f".weight.quant_state.bitsandbytes__{kind}" for kind in BNB_STATES)

    def _state(self) -> dict[str, Any]:
        part = next(part for part in self.parts if self.has(part))
        raw = self.part(part)
        need(raw.dtype == torch.uint8 and raw.numel() <= 10_000, "its quant_state is no text")
        try:
            found = json.loads(bytes(raw.tolist()).decode())
            shape, block = tuple(found["shape"]), found["blocksize"]
            nested = found.get("nested_blocksize", 1)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Wrong(f"its quant_state cannot be read ({type(error).__name__})") from None
        sizes = (*shape, block, nested)
        need(len(shape) == 2 and all(type(n) is int and 0 < n < SIZES for n in sizes), f"its shape is {shape!r:.40}")
        return {"shape": shape, "block": block, "nested": nested} | {
            key: found.get(key) for key in ("dtype", "nested_offset")
        }

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self._state()["shape"]
        return shape

    @property
    @override
    def dtype(self) -> torch.dtype:
        named = self._state()["dtype"]
        need(named in ("float32", "bfloat16", "float16"), f"its dtype is {named!r:.20}")
        return torch_dtype(named)

    @override
    def read(self, index: int | None = None) -> Tensor:
        state, packed, code = self._state(), self.part(".weight"), self.part(".weight.quant_map").float()
        count = math.prod(state["shape"])
        need(packed.dtype == torch.uint8 and packed.numel() == -(-count // 2), f"{packed.numel()} bytes for {count}")
        need(code.numel() == 16, f"its quant_map has {code.numel()} values")
        blocks = -(-count // state["block"])
        absmax = self.part(".weight.absmax").flatten()
        need(absmax.numel() == blocks, f"{absmax.numel()} absmax for {blocks} blocks")
        if absmax.dtype == torch.uint8:
            inner, scale = self.part(".weight.nested_quant_map").float(), self.part(".weight.nested_absmax").float()
            offset = state["nested_offset"]
            need(inner.numel() == 256 and isinstance(offset, (int, float)), "its nested absmax is not whole")
            need(scale.numel() == -(-blocks // state["nested"]), f"{scale.numel()} nested absmax for {blocks} blocks")
            scale = scale.flatten().repeat_interleave(state["nested"])[:blocks]
            absmax = inner[absmax.long()] * scale + offset
        scales = absmax.float().repeat_interleave(state["block"])[:count]
        values = code[nibbles(packed.flatten(), high_first=True)[:count]]
        return (values * scales).reshape(state["shape"]).to(self.dtype)


class Bitsandbytes8(Packed):
    """8 bits, a scale a row (LLM.int8)."""

    name = "bitsandbytes, 8 bits"
    parts = (".SCB",)

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return self.sides(".weight")

    @override
    def read(self, index: int | None = None) -> Tensor:
        if self.has(".weight_format"):
            form = self.part(".weight_format")
            need(form.numel() == 1 and int(form) == 0, "its weights are not in plain rows")
        codes, scales = self.part(".weight"), self.part(".SCB").float().flatten()
        need(codes.dtype == torch.int8 and len(scales) == self.shape[0], f"{len(scales)} scales for {self.shape}")
        return codes.float() * scales[:, None] * (1 / 127)


class Float8(Packed):
    """8-bit floats or integers with a scale: of the matrix, a row, or a block of rows and columns."""

    name = "8 bits with scales"
    parts = (".weight_scale_inv", ".weight_scale", ".scale_weight")

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return self.sides(".weight", len(self.tensors.shape(f"{self.module}.weight")))

    @override
    def read(self, index: int | None = None) -> Tensor:
        codes = self.part(".weight", index)
        need(codes.dtype.itemsize == 1, f"its weight is {codes.dtype}")
        need(not self.has(".weight_scale_2") and not self.has(".weight_global_scale"), "it has a scale of scales")
        part = next(part for part in self.parts if self.has(part))
        scales = self.part(part, index if len(self.shape) > 2 else None).float()
        weight = codes.float()
        if self.has(".weight_zero_point"):
            weight = weight - self.part(".weight_zero_point").float().reshape(-1, 1)
        if scales.numel() == 1:
            return weight * scales.reshape(())
        need(scales.ndim in (1, 2) and weight.ndim == 2, f"its scales are {tuple(scales.shape)}")
        scales = scales.reshape(len(scales), -1)
        return weight * self._spread(scales, weight.shape)

    def _spread(self, scales: Tensor, shape: torch.Size) -> Tensor:
        """A scale for every number; the sides of a block are those of the settings, or what divides evenly."""
        stated, blocks = self.settings.get("weight_block_size"), []
        for axis, (count, side) in enumerate(zip(scales.shape, shape, strict=True)):
            block = stated[axis] if type(stated) is list and len(stated) == 2 and count > 1 else -(-side // count)
            need(type(block) is int and 0 < block < SIZES, f"its blocks are {stated!r:.40}")
            need(count == 1 or -(-side // block) == count, f"{tuple(scales.shape)} scales for {tuple(shape)}")
            blocks.append(side if count == 1 else block)
        spread = scales.repeat_interleave(blocks[0], 0)[: shape[0]]
        return spread.repeat_interleave(blocks[1], 1)[:, : shape[1]]


class Grouped(Packed):
    """What GPTQ and AWQ share: 32-bit words, a scale and a zero a group of inputs and an output."""

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.tensors.dtype(f"{self.module}.scales")

    def _weight(self, codes: Tensor, zeros: Tensor, groups: Tensor) -> Tensor:
        """W = (q − z)·s for codes (in, out), zeros and scales (groups, out)."""
        scales = self.part(".scales").float()
        need(scales.shape == zeros.shape, f"{tuple(scales.shape)} scales for {tuple(zeros.shape)} zeros")
        need(bool((groups >= 0).all() and (groups < len(scales)).all()), "an input is of a group that is not there")
        return ((codes - zeros[groups]).float() * scales[groups]).T.to(self.dtype).contiguous()


class Gptq(Grouped):
    """Words down the inputs: (in·bits/32, out); zeros are stored less 1, but for "gptq_v2"."""

    name = "GPTQ"
    parts = (".qweight",)

    @property
    def _bits(self) -> int:
        stated = self.number("bits", range(2, 9))
        words, (groups, out) = self.sides(".qzeros")[1], self.sides(".scales")
        need((groups > 0 and words * 32 % out == 0) or stated is not None, f"{words} words of zeros for {out} outputs")
        return stated or words * 32 // out

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        words, out = self.sides(".qweight")
        return out, words * 32 // self._bits

    @override
    def read(self, index: int | None = None) -> Tensor:
        (out, into), bits = self.shape, self._bits
        form = self.settings.get("checkpoint_format", "gptq")
        need(form in ("gptq", "gptq_v2"), f"its form is {form!r:.20}")
        codes = unpacked(self.part(".qweight").T.contiguous(), bits, into).T
        packed, groups = self.part(".qzeros"), self.sides(".scales")[0]
        need(packed.shape[0] == groups and packed.shape[1] * 32 >= out * bits, f"zeros are {tuple(packed.shape)}")
        zeros = unpacked(packed, bits, out)
        if form == "gptq":
            zeros = (zeros + 1) & ((1 << bits) - 1)
        if self.has(".g_idx"):
            of = self.part(".g_idx").long()
            need(of.shape == (into,), f"g_idx is {tuple(of.shape)} for {into} inputs")
        else:
            of = torch.arange(into) // -(-into // groups)
        return self._weight(codes, zeros, of)


class Awq(Grouped):
    """Words along the outputs: (in, out·bits/32), eight numbers of 4 bits each in AWQ's order."""

    name = "AWQ"
    parts = (".qweight",)

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        into, words = self.sides(".qweight")
        return words * 8, into

    @override
    def read(self, index: int | None = None) -> Tensor:
        need(self.number("bits", (4,)) in (None, 4), "its bits are not 4")
        version = str(self.settings.get("version", "gemm")).lower()
        need(version == "gemm", f"its version is {version:.20}")
        (out, into), groups = self.shape, self.sides(".scales")[0]
        order = (torch.arange(out).view(-1, 8)[:, list(AWQ_ORDER)]).flatten()
        zeros = self.part(".qzeros")
        need(tuple(zeros.shape) == (groups, out // 8), f"zeros are {tuple(zeros.shape)}")
        need(into % groups == 0, f"{groups} groups of {into} inputs")
        codes, zeros = (unpacked(words, 4, out)[:, order] for words in (self.part(".qweight"), zeros))
        return self._weight(codes, zeros, torch.arange(into) // (into // groups))


class PackedRows(Packed):
    """compressed-tensors, "pack-quantized": whole numbers from −2^(bits − 1), in words along the rows."""

    name = "compressed-tensors"
    parts = (".weight_packed",)

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        sides = self.part(".weight_shape")
        need(sides.numel() == 2 and not sides.dtype.is_floating_point, "its weight_shape is no shape")
        rows, columns = (int(n) for n in sides.flatten())
        need(0 < rows < SIZES and 0 < columns < SIZES, f"its weight_shape is {rows}, {columns}")
        return rows, columns

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.tensors.dtype(f"{self.module}.weight_scale")

    def _stated_bits(self) -> list[int]:
        """The bits that the settings give to groups of layers."""
        groups = self.settings.get("config_groups")
        weights = (
            [group.get("weights") for group in groups.values() if isinstance(group, dict)]
            if isinstance(groups, dict)
            else []
        )
        return sorted(
            {one["num_bits"] for one in weights if isinstance(one, dict) and type(one.get("num_bits")) is int}
        )

    @override
    def read(self, index: int | None = None) -> Tensor:
        (rows, columns), words = self.shape, self.part(".weight_packed")
        need(words.dtype == torch.int32 and words.ndim == 2 and len(words) == rows, f"words are {tuple(words.shape)}")
        fitting = [bits for bits in range(1, 9) if -(-columns * bits // 32) == words.shape[1]]
        need(len(fitting) > 0, f"{words.shape[1]} words for {columns} columns")
        told = [bits for bits in self._stated_bits() if bits in fitting] or fitting
        need(len(told) == 1, f"{words.shape[1]} words for {columns} columns do not tell its bits")
        bits = told[0]
        middle, scales = 1 << (bits - 1), self.part(".weight_scale").float()
        need(scales.ndim == 2 and len(scales) in (1, rows), f"its scales are {tuple(scales.shape)}")
        weight = (unpacked(words, bits, columns) - middle).float()
        groups = scales.shape[1]
        of = torch.arange(columns) // -(-columns // groups)
        if self.has(".weight_g_idx"):
            of = self.part(".weight_g_idx").long()
            need(of.shape == (columns,) and bool((of >= 0).all() and (of < groups).all()), "its g_idx is no index")
        if self.has(".weight_zero_point"):
            packed = self.part(".weight_zero_point")
            need(packed.ndim == 2 and packed.shape[1] == groups and packed.shape[0] * 32 >= rows * bits, "its zeros")
            weight = weight - (unpacked(packed.T.contiguous(), bits, rows).T - middle).float()[:, of]
        return (weight * scales[:, of]).to(self.dtype)


class Mxfp4(Packed):
    """4-bit floats in blocks of 32 with a power of two (gpt-oss); experts [experts, out, blocks, 16]."""

    name = "MXFP4"
    parts = ("_blocks",)
    end = ""

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        *front, out, blocks, size = self.tensors.shape(f"{self.module}_blocks")
        return (*front, blocks * size * 2, out)  # transformers stores the experts as [experts, in, out]

    @property
    @override
    def dtype(self) -> torch.dtype:
        return torch.bfloat16  # exact: a number has two significant bits

    @override
    def read(self, index: int | None = None) -> Tensor:
        blocks, scales = self.part("_blocks", index), self.part("_scales", index)
        need(blocks.dtype == scales.dtype == torch.uint8, f"blocks are {blocks.dtype}")
        need(blocks.shape[:-1] == scales.shape, f"{tuple(scales.shape)} scales for {tuple(blocks.shape)}")
        values = torch.tensor(FP4)[nibbles(blocks, high_first=False)]
        return torch.ldexp(values, scales.int()[..., None] - 127).flatten(-2).mT.to(torch.bfloat16)


SCHEMES: tuple[type[Packed], ...] = (Bitsandbytes4, Bitsandbytes8, Float8, Awq, Gptq, PackedRows, Mxfp4)

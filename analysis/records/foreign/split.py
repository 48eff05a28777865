"""Matrices that hold several: query, key and value in one, gate and up in one, split by rows (``….c_attn.query``).

A split takes from every group of rows those from start to stop. Where the three stand one below the other there is one
group; GPT-NeoX, BLOOM and Falcon have one group a head: (q, k, v) of the first head, then of the second.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from deltaw.analysis.records.source import LeftOut, Place, Shape, Source, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deltaw.adapters.method import Method, ScaledFactors, ScaledLowRank

BY_HEAD = ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon")  # (q, k, v) of each head in turn
PLAIN = ("phi3", "phi4_multimodal", "mpt", "modernbert", "modernbert-decoder", "dbrx", "vit", "phi")
FUSED = ("qkv_proj", "query_key_value", "Wqkv", "c_attn", "qkv", "in_proj", "attn_qkv", "to_qkv")
FALCON = ("falcon", "RefinedWeb", "RefinedWebModel")
QKV = ("query", "key", "value")


@dataclass(frozen=True)
class Rows:
    """Some of a matrix's rows: of each of ``groups`` equal groups those from ``start`` to ``stop``."""

    groups: int
    start: int
    stop: int

    def of(self, matrix: Tensor) -> Tensor:
        """Return the rows, (fewer, in)."""
        rows, columns = matrix.shape
        grouped = matrix.reshape(self.groups, rows // self.groups, columns)
        return grouped[:, self.start : self.stop].reshape(self.count, columns)

    @property
    def count(self) -> int:
        """How many they are."""
        return self.groups * (self.stop - self.start)


def splits(module: str, shape: Shape, config: Mapping[str, Any]) -> dict[str, Rows]:
    """Return the matrices that a fused one holds, by the name's new last part; none where it is not one of the known.

    Arguments:
        module: Its name.
        shape: (out, in).
        config: The model's ``config.json``; the sizes of heads come from it.
    """
    last, (rows, columns), kind = module.rpartition(".")[2], shape, str(config.get("model_type", ""))
    if last == "gate_up_proj" and rows % 2 == 0:
        if kind == "gpt_oss":
            return {"gate": Rows(rows // 2, 0, 1), "up": Rows(rows // 2, 1, 2)}
        return {"gate": Rows(1, 0, rows // 2), "up": Rows(1, rows // 2, rows)}
    if last not in FUSED:
        return {}
    heads, groups, size = _heads(config, columns)
    order: tuple[str, ...] = QKV
    if last == "c_attn" and rows == 2 * columns and "crossattention" in module:
        return {"key": Rows(1, 0, columns), "value": Rows(1, columns, rows)}
    if kind == "codegen":
        blocks, parts, order = 4, [1, 1, 1], ("query", "value", "key")
    elif kind in BY_HEAD:
        blocks, parts = heads, [1, 1, 1]
    elif kind in FALCON:
        if config.get("new_decoder_architecture"):
            blocks, parts = groups, [heads // groups if groups else 0, 1, 1]
        elif config.get("multi_query", True):
            blocks, parts = 1, [heads, 1, 1]
        else:
            blocks, parts = heads, [1, 1, 1]
    elif kind == "gpt_bigcode":
        blocks, parts = (1, [heads, 1, 1]) if config.get("multi_query", True) else (heads, [1, 1, 1])
    elif kind in PLAIN and heads and rows == (heads + 2 * groups) * size:
        blocks, parts = 1, [heads, groups, groups]
    elif rows == 3 * columns and (last in ("c_attn", "in_proj", "qkv", "to_qkv") or kind in PLAIN):
        blocks, parts = 1, [1, 1, 1]
    else:
        return {}
    if not blocks or 0 in parts or rows % (blocks * sum(parts)):
        return {}
    unit = rows // (blocks * sum(parts))
    found, start = {}, 0
    for name, count in zip(order, parts, strict=True):
        found[name] = Rows(blocks, start, start + count * unit)
        start += count * unit
    return {name: found[name] for name in QKV}


class SplitSource(Source):
    """A source whose fused matrices are shown as the several that they are.

    Arguments:
        inner: The source as it was saved.
    """

    def __init__(self, inner: Source) -> None:
        self._inner = inner
        self.where, self.format, self.method = inner.where, inner.format, inner.method
        self.steps, self.info, self.config = inner.steps, inner.info, inner.config
        self.steps_known, self.keeps_base, self.manifest = inner.steps_known, inner.keeps_base, inner.manifest
        self.folder = inner.folder
        self._rows: dict[str, tuple[str, Rows | None]] = {}
        self._whole_base: tuple[str, Any] = "", None
        self.shapes = {}
        for module, shape in inner.shapes.items():
            parts = splits(module, shape, inner.config)
            for last, rows in parts.items():
                self._rows[f"{module}.{last}"] = module, rows
                self.shapes[f"{module}.{last}"] = (rows.count, shape[1])
            if not parts:
                self._rows[module] = module, None
                self.shapes[module] = shape

    @property
    def parts(self) -> list[str]:
        """The modules that are only some rows of a matrix."""
        return [module for module in self.shapes if self._rows[module][1] is not None]

    def _of(self, module: str) -> tuple[str, Rows | None]:
        self.check(module)
        return self._rows[module]

    @override
    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        whole, rows = self._of(module)
        return _rows_of(self._inner.weight(whole, step, dtype), rows)

    @property
    @override
    def base_from(self) -> str | None:
        return self._inner.base_from

    @override
    def base(self, module: str) -> Tensor:
        whole, rows = self._of(module)
        return _rows_of(self._inner.base(whole), rows)

    @override
    def update(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        whole, rows = self._of(module)
        return _rows_of(self._inner.update(whole, step, dtype), rows)

    @override
    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        whole, rows = self._of(module)
        found = self._inner.factors(whole, step, dtype)
        return None if found is None else (_rows_of(found[0], rows), found[1])

    @override
    def scaled_factors(self, module: str, step: int) -> ScaledFactors | None:
        whole, rows = self._of(module)
        found = self._inner.scaled_factors(whole, step)
        return None if found is None else found._replace(U=_rows_of(found.U, rows))

    @override
    def scaled_low_rank(self, module: str, step: int, base: Tensor) -> ScaledLowRank | None:
        found = self.scaled_low_ranks(module, [step], base)
        return None if found is None else found[0]

    @override
    def scaled_low_ranks(self, module: str, steps: Sequence[int], base: Tensor) -> list[ScaledLowRank] | None:
        whole, rows = self._of(module)
        if rows is None:
            return self._inner.scaled_low_ranks(whole, steps, base)
        if self._whole_base[0] != whole:  # the parts of a matrix are looked at one after the other
            read = self._inner.base(whole)
            self._whole_base = whole, read.to(base.dtype).contiguous()
        found = self._inner.scaled_low_ranks(whole, steps, self._whole_base[1])
        if found is None:
            return None
        return [form._replace(rho=rows.of(form.rho[:, None])[:, 0], U=rows.of(form.U)) for form in found]

    @override
    def state(self, module: str, step: int) -> State:
        return self._inner.state(self._of(module)[0], step)

    @override
    def method_of(self, module: str) -> Method | None:
        whole, rows = self._of(module)  # a part has not the tensors of the method, the whole matrix has
        return self._inner.method_of(whole) if rows is None else None

    @override
    def kernel(self, module: str) -> tuple[int, ...]:
        return self._inner.kernel(self._of(module)[0])

    @override
    def left_out(self, modules: Collection[str], *, shares: bool) -> list[LeftOut]:
        return self._inner.left_out({self._rows[module][0] for module in modules}, shares=shares)

    @override
    def new_rows(self, module: str, step: int) -> Tensor | None:
        whole, rows = self._of(module)
        return self._inner.new_rows(whole, step) if rows is None else None

    @override
    def label(self, module: str) -> str:
        return self._inner.label(self._of(module)[0])

    @override
    def rebuilt(self, module: str) -> bool:
        return self._inner.rebuilt(self._of(module)[0])

    @override
    def rounding(self, module: str, step: int) -> torch.dtype | None:
        return self._inner.rounding(self._of(module)[0], step)

    @override
    def scalars(self) -> list[dict[str, float]]:
        return self._inner.scalars()

    @override
    def verify(self) -> int:
        return self._inner.verify()

    @override
    def check_methods(self) -> None:
        self._inner.check_methods()

    @override
    def checkpoint_bytes(self) -> int:
        return self._inner.checkpoint_bytes()

    @override
    def places(self, step: int | None) -> Sequence[Place] | None:
        return self._inner.places(step)

    @override
    def checksum(self, step: int | None) -> str:
        return self._inner.checksum(step)

    @override
    def described(self, module: str) -> str | None:
        whole, rows = self._of(module)
        inner = self._inner.described(whole)
        return None if inner is None else f"{rows} of {whole}: {inner}"

    @override
    def base_checksum(self) -> tuple[str, str] | None:
        return self._inner.base_checksum()


def _rows_of(matrix: Tensor, rows: Rows | None) -> Tensor:
    return matrix if rows is None else rows.of(matrix)


def _heads(config: Mapping[str, Any], columns: int) -> tuple[int, int, int]:
    """Return the number of heads, of key and value heads, and the size of one; 0 where the configuration lacks them."""

    def number(*keys: str) -> int:
        return next((int(config[key]) for key in keys if type(config.get(key)) is int and config[key] > 0), 0)

    heads = number("num_attention_heads", "n_head", "n_heads", "num_heads")
    attention = config.get("attn_config")
    inner = attention if isinstance(attention, dict) else {}
    groups = number("num_key_value_heads", "num_kv_heads", "n_head_kv")
    if not groups and type(inner.get("kv_n_heads")) is int:
        groups = max(0, int(inner["kv_n_heads"]))
    size = number("head_dim") or (columns // heads if heads else 0)
    return heads, groups or heads, size

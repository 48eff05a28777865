"""W₀ of an adapted layer in a base of another format: one matrix, some rows of one, or several below each other.

transformer.double_blocks.0.img_attn.qkv   Flux by its authors: to_q, to_k and to_v of diffusers' transformer_blocks
layers.0.attn.q_proj                       torchtune: transformers' q_proj, the rows of each head in another order
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.foreign.base import GIVE, Base, BaseError
from deltaw.analysis.records.foreign.formats.naming import canonical, component
from deltaw.analysis.records.source import Shape, fitting

if TYPE_CHECKING:
    from torch import Tensor

ROTARY = ("llama", "mistral", "gemma", "gemma2", "mixtral")  # of which torchtune has Meta's order of rows


class Piece(NamedTuple):
    """Where a piece of W₀ stands.

    Arguments:
        name: The base's.
        rows: Which of its rows, as a part of all: (k, n) for the k-th of n; (k, 0) for the k-th of as many as it has
            columns; (k, -1) for all from that on.
        order: "query" or "key" where the rows of each head are taken in Meta's order.
    """

    name: str
    rows: tuple[int, int] | None = None
    order: str = ""


def _same(*pairs: tuple[str, str]) -> list[tuple[re.Pattern[str], list[Piece]]]:
    return [(re.compile(pattern), [Piece(name)]) for pattern, name in pairs]


def _both(one: str, other: str) -> list[tuple[re.Pattern[str], list[Piece]]]:
    """A layer that has another name, in both directions; N stands for its number."""

    def pattern(name: str) -> str:
        return re.escape(name).replace("N", r"(\d+)")

    return _same((pattern(one), other.replace("N", r"\1")), (pattern(other), one.replace("N", r"\1")))


def _fused(whole: str, *parts: str, by_columns: bool = False) -> list[tuple[re.Pattern[str], list[Piece]]]:
    """A matrix that another format has in parts, in both directions."""
    found = [(re.compile(re.escape(whole).replace("N", r"(\d+)")), [Piece(part.replace("N", r"\1")) for part in parts])]
    for k, part in enumerate(parts):
        rows = (k, len(parts)) if not by_columns else (k, -1 if k == len(parts) - 1 else 0)
        found.append((re.compile(re.escape(part).replace("N", r"(\d+)")), [Piece(whole.replace("N", r"\1"), rows)]))
    return found


def _stream(double: str, diffusers: str) -> list[tuple[re.Pattern[str], list[Piece]]]:
    q, k, v, out, ff, norm = diffusers.split()
    own, block = f"double_blocks.N.{double}", "transformer_blocks.N"
    sd3 = f"joint_blocks.N.{'x' if double == 'img' else 'context'}_block"
    found = []
    for qkv, proj, first, second, mod in (
        (f"{own}_attn.qkv", f"{own}_attn.proj", f"{own}_mlp.0", f"{own}_mlp.2", f"{own}_mod.lin"),
        (
            f"{own}_attn_qkv",
            f"{own}_attn_proj",
            f"{own}_mlp.fc1",
            f"{own}_mlp.fc2",
            f"{own}_mod.linear",
        ),  # HunyuanVideo
        (f"{sd3}.attn.qkv", f"{sd3}.attn.proj", f"{sd3}.mlp.fc1", f"{sd3}.mlp.fc2", f"{sd3}.adaLN_modulation.1"),
    ):
        found += _fused(qkv, *(f"{block}.attn.{part}" for part in (q, k, v)))
        found += _both(proj, f"{block}.attn.{out}") + _both(first, f"{block}.{ff}.net.0.proj")
        found += _both(second, f"{block}.{ff}.net.2") + _both(mod, f"{block}.{norm}.linear")
    return found


_HF = "model.layers.N"
ALIASES: list[tuple[re.Pattern[str], list[Piece]]] = [
    *_stream("img", "to_q to_k to_v to_out.0 ff norm1"),
    *_stream("txt", "add_q_proj add_k_proj add_v_proj to_add_out ff_context norm1_context"),
    *_fused(
        "single_blocks.N.linear1",
        *(f"single_transformer_blocks.N.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
        by_columns=True,
    ),
    *_both("single_blocks.N.linear2", "single_transformer_blocks.N.proj_out"),
    *_both("single_blocks.N.modulation.lin", "single_transformer_blocks.N.norm.linear"),
    *_both("single_blocks.N.modulation.linear", "single_transformer_blocks.N.norm.linear"),
    *_both("img_in", "x_embedder"),
    *_both("txt_in", "context_embedder"),
    *_both("final_layer.linear", "proj_out"),
    # Wan
    *(
        part
        for own, other in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for x, y in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
        for part in _both(f"blocks.N.{own}.{x}", f"blocks.N.{other}.{y}")
    ),
    *(part for x in "kv" for part in _both(f"blocks.N.cross_attn.{x}_img", f"blocks.N.attn2.add_{x}_proj")),
    *_both("blocks.N.ffn.0", "blocks.N.ffn.net.0.proj"),
    *_both("blocks.N.ffn.2", "blocks.N.ffn.net.2"),
    # CLIP of OpenCLIP, as SDXL's single file has it
    *_fused("transformer.resblocks.N.attn.in_proj", *(f"encoder.layers.N.self_attn.{x}_proj" for x in "qkv")),
    *_both("transformer.resblocks.N.attn.out_proj", "encoder.layers.N.self_attn.out_proj"),
    *_both("transformer.resblocks.N.mlp.c_fc", "encoder.layers.N.mlp.fc1"),
    *_both("transformer.resblocks.N.mlp.c_proj", "encoder.layers.N.mlp.fc2"),
    # torchtune, and Meta's own names
    *(
        (re.compile(rf"layers\.(\d+)\.attn\.{x}_proj"), [Piece(rf"model.layers.\1.self_attn.{x}_proj", None, order)])
        for x, order in (("q", "query"), ("k", "key"), ("v", ""))
    ),
    *_both("layers.N.attn.output_proj", f"{_HF}.self_attn.o_proj"),
    *_both("layers.N.mlp.w1", f"{_HF}.mlp.gate_proj"),
    *_both("layers.N.mlp.w3", f"{_HF}.mlp.up_proj"),
    *_both("layers.N.mlp.w2", f"{_HF}.mlp.down_proj"),
    *_both("output", "lm_head"),
    *(part for x in "qkv" for part in _both(f"layers.N.attn.{x}_proj", f"layers.N.attention.w{x}")),
    *_both("layers.N.attn.output_proj", "layers.N.attention.wo"),
    *(part for w in "123" for part in _both(f"layers.N.mlp.w{w}", f"layers.N.feed_forward.w{w}")),
    # LitGPT
    (re.compile(r"transformer\.h\.(\d+)\.attn\.qkv"), [Piece(rf"model.layers.\1.self_attn.{x}_proj") for x in "qkv"]),
    *_both("transformer.h.N.attn.proj", f"{_HF}.self_attn.o_proj"),
    *_both("transformer.h.N.mlp.fc_1", f"{_HF}.mlp.gate_proj"),
    *_both("transformer.h.N.mlp.fc_2", f"{_HF}.mlp.up_proj"),
    *_both("transformer.h.N.mlp.proj", f"{_HF}.mlp.down_proj"),
]  # fmt: skip


class BaseParts:
    """W₀ of a file's layers.

    Arguments:
        base: The base that was given, or ``None``.
        own: What of W₀ stands in the adapter's own file, or ``None``.
        modules: The layers, by the names that are shown.
    """

    def __init__(self, base: Base | None, own: Base | None, modules: Iterable[str]) -> None:
        self._base, self._own = base, own
        self._by_part: dict[tuple[str, str], str | None] = {}
        for name in () if base is None else base.names:
            part, rest = component(name)
            for key in {(part, canonical(rest)), ("", canonical(name))}:
                self._by_part[key] = None if key in self._by_part else name
        self._pieces = {module: self._found(module) for module in modules}
        if base is not None:
            base.expect(module for module, found in self._pieces.items() if found is None and not self._owned(module))

    def kernel(self, module: str) -> tuple[int, ...]:
        """Return (k…) of a convolution, () of all else."""
        base, pieces = (self._own, None) if self._owned(module) else (self._base, self._pieces.get(module))
        return () if base is None else base.kernel(pieces[0].name if pieces else module)

    @property
    def has_own(self) -> bool:
        """Whether some of W₀ stands in the adapter's own file."""
        return self._own is not None

    def _owned(self, module: str) -> bool:
        return self._own is not None and self._own.has(module)

    def _found(self, module: str) -> list[Piece] | None:
        """The pieces of a layer, ``None`` where no name is its own; then one with another prefix may be."""
        if self._base is None or self._owned(module):
            return None
        if self._base.has(module):
            return [Piece(module)]
        for part, full in {component(module): None, ("", module): None}:
            rest = canonical(full)
            name = self._named(part, rest)
            if name is not None:
                return [Piece(name)]
            for pattern, pieces in ALIASES:
                match = pattern.fullmatch(rest)
                found = [(self._named(part, match.expand(piece.name)), piece) for piece in pieces] if match else []
                if found and all(name is not None for name, _ in found):
                    return [piece._replace(name=str(name)) for name, piece in found]
        return None

    def _named(self, part: str, name: str) -> str | None:
        return self._by_part.get((part, name)) or self._by_part.get(("", name))

    def given(self, module: str) -> bool:
        """Return whether there is any base to look into."""
        return self._base is not None or self._owned(module)

    def shape(self, module: str) -> Shape | None:
        """Return (out, in·k…) of W₀, ``None`` where it is not known."""
        if self._owned(module) and self._own is not None:
            return self._own.shape(module)
        if self._base is None:
            return None
        pieces = self._pieces.get(module)
        if pieces is None:
            return self._base.shape(module)
        shapes = [self._base.shape(piece.name) for piece in pieces]
        known = [_rows_of(piece, shape) for piece, shape in zip(pieces, shapes, strict=True) if shape is not None]
        return (sum(len(rows) for rows in known), shapes[0][1]) if shapes[0] is not None else None

    def why_not(self, module: str) -> str:
        """Return why there is no W₀ of a layer."""
        return "its base is not known" if self._base is None else self._base.why_not(module)

    def base_from(self, modules: Iterable[str]) -> str | None:
        """Return where W₀ comes from, ``None`` where some of it is nowhere."""
        if self._base is not None:
            return self._base.where
        return self._own.where if self._own is not None and all(map(self._owned, modules)) else None

    def read(self, module: str, shape: Shape) -> Tensor:
        """Return W₀ (out, in·k…).

        Raises:
            BaseError: The base has no such layer, or of another shape.
        """
        import torch

        base = self._own if self._owned(module) else self._base
        if base is None:
            raise BaseError(f"there is no W₀ of {module}; {GIVE}")
        pieces = None if base is self._own else self._pieces.get(module)
        if pieces is None or (len(pieces) == 1 and pieces[0].rows is None and not pieces[0].order):
            return base.read(module if pieces is None else pieces[0].name, shape)
        found = []
        for piece in pieces:
            own = base.shape(piece.name)
            if own is None:
                raise BaseError(f"{base.where}: {base.why_not(piece.name)}")
            rows = _rows_of(piece, own)
            found.append(_ordered(piece, base.read(piece.name, own), base)[rows.start : rows.stop])
        joined = torch.cat(found) if len(found) > 1 else found[0]
        try:
            return fitting(f"{base.where}: the base is of another model", module, joined, shape)
        except RecordError as error:
            raise BaseError(str(error)) from None


def _ordered(piece: Piece, matrix: Tensor, base: Base) -> Tensor:
    """The rows of each head in Meta's order, where they are paired for rotary embeddings by neighbours."""
    config = base.config
    if not piece.order or config.get("model_type", "llama") not in ROTARY:
        return matrix
    heads = config.get("num_attention_heads")
    if piece.order == "key":
        heads = config.get("num_key_value_heads", heads)
    if type(heads) is not int or heads < 1 or len(matrix) % (2 * heads):
        raise BaseError(
            f"{base.where}: {piece.name} is needed in Meta's order of rows, for which config.json has to "
            "tell num_attention_heads; give the folder of the model"
        )
    size = len(matrix) // heads
    return matrix.view(heads, 2, size // 2, -1).transpose(1, 2).reshape(matrix.shape)


def _rows_of(piece: Piece, shape: Shape) -> range:
    if piece.rows is None:
        return range(shape[0])
    k, of = piece.rows
    if of > 0:
        size = shape[0] // of
        return range(k * size, (k + 1) * size)
    return range(k * shape[1], shape[0] if of < 0 else (k + 1) * shape[1])

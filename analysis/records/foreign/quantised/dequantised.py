"""The tensors of a model with every quantised matrix in the place of its parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.storage.tensors import Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from deltaw.analysis.records.foreign.quantised.schemes import Packed

# The ends of names by which a quantised matrix is known, without loading torch.
MARKS = (
    ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4", ".SCB", ".weight_scale_inv", ".weight_scale",
    ".scale_weight", ".qweight", ".weight_packed", "_blocks",
)  # fmt: skip
# A file with one of these holds what the arithmetic here does not know.
OTHERS = (".weight_scale_2", ".weight_global_scale", ".weight_quantizer", ".codebooks", ".W_q")


class UnreadError(RecordError):
    """A quantised matrix is not what its format says."""


class Dequantised(Tensors):
    """See ``dequantised``.

    Arguments:
        tensors: The model's.
        packed: The quantised matrices, by the name that each has here.
        parts: The name here, by that of each part.
    """

    def __init__(self, tensors: Tensors, packed: Mapping[str, Packed], parts: Mapping[str, str]) -> None:
        self._tensors, self._packed, self.where = tensors, dict(packed), tensors.where
        self._names = dict.fromkeys(parts.get(name, name) for name in tensors.names())  # in their order

    @override
    def names(self) -> Collection[str]:
        return self._names

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        self.need(name)
        return self._asked(name, "shape") if name in self._packed else self._tensors.shape(name)

    @override
    def dtype_name(self, name: str) -> str:
        self.need(name)
        if name in self._packed:
            return str(self._asked(name, "dtype")).removeprefix("torch.")
        return self._tensors.dtype_name(name)

    @override
    def read(self, name: str, index: int | None = None) -> Tensor:
        self.need(name)
        if name not in self._packed:
            return self._tensors.read(name, index)
        values: Tensor = self._asked(name, "read", index)
        return values

    def _asked(self, name: str, what: str, *given: Any) -> Any:
        from deltaw.analysis.records.foreign.quantised.schemes import Wrong

        one = self._packed[name]
        try:
            found = getattr(one, what)
            return found(*given) if what == "read" else found
        except Wrong as error:
            raise UnreadError(
                f"{self.where}: {one.module} cannot be read as {one.name} ({error}); give the model as it was before, "
                "or load it with transformers and give model.dequantize()"
            ) from None


def dequantised(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Return a model's tensors with every quantised matrix as one tensor, under the name it had before.

    Where nothing is quantised, or not in a way that is known, the tensors are returned as they are.

    Arguments:
        tensors: The model's.
        config: Its ``config.json``.
    """
    names = tensors.names()
    if any(name.endswith(OTHERS) for name in names):
        return tensors
    marked = [name for name in names if name.endswith(MARKS)]
    if not marked:
        return tensors
    from deltaw.analysis.records.foreign.quantised.schemes import SCHEMES, Awq, Gptq, Wrong

    stated = config.get("quantization_config")
    settings = stated if isinstance(stated, dict) else {}
    packed: dict[str, Packed] = {}
    parts: dict[str, str] = {}
    for name in marked:
        kind, module = next(
            (kind, name.removesuffix(part)) for kind in SCHEMES for part in kind.parts if name.endswith(part)
        )
        if kind is Awq and not _is_awq(tensors, module, settings):
            kind = Gptq
        if not _whole(kind, module, names):
            continue
        one, here = kind(tensors, module, settings), module + kind.end
        try:
            one.shape  # noqa: B018 # what has no true shape stays as it is stored, and is no matrix
        except (Wrong, RecordError):
            continue
        packed[here] = one
        parts |= dict.fromkeys([name, *(f"{module}{part}" for part in PARTS)], here)
    return Dequantised(tensors, packed, parts) if packed else tensors


PARTS = (
    ".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map", ".SCB",
    ".weight_format", ".weight_scale_inv", ".weight_scale", ".scale_weight", ".weight_zero_point", ".qweight",
    ".qzeros", ".scales", ".g_idx", ".weight_packed", ".weight_shape", ".weight_g_idx", "_blocks", "_scales",
    ".input_scale", ".scale_input",
)  # fmt: skip
NEEDED = {
    "Bitsandbytes4": (".weight", ".weight.absmax", ".weight.quant_map"), "Bitsandbytes8": (".weight",),
    "Float8": (".weight",), "Awq": (".qzeros", ".scales"), "Gptq": (".qzeros", ".scales"),
    "PackedRows": (".weight_scale", ".weight_shape"), "Mxfp4": ("_scales",),
}  # fmt: skip


def _whole(kind: type[Packed], module: str, names: Collection[str]) -> bool:
    """Whether all parts are there; without one it is something else, or refused as what it is."""
    return all(module + part in names for part in NEEDED[kind.__name__])


def _is_awq(tensors: Tensors, module: str, settings: Mapping[str, Any]) -> bool:
    """AWQ by the settings; without any, by its words, which run along the outputs."""
    method = settings.get("quant_method")
    if method in ("awq", "gptq"):
        return bool(method == "awq")
    if f"{module}.g_idx" in tensors.names() or f"{module}.scales" not in tensors.names():
        return False
    words, scales = tensors.shape(f"{module}.qweight"), tensors.shape(f"{module}.scales")
    return len(words) == 2 and len(scales) == 2 and words[1] * 8 == scales[1]

"""Quantising a base to 4 bits (QLoRA); ``bitsandbytes.py`` has the layers that come of it."""

from collections.abc import Sequence

import torch
from torch import nn

from deltaw.adapters.bitsandbytes import DTYPES, load_bitsandbytes
from deltaw.adapters.checks import public
from deltaw.adapters.errors import DataError, NonFiniteError, OptionError, TargetError
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.modules import is_conv1d, replace_module
from deltaw.adapters.patterns import matching, pattern_list

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@public
def quantize(
    model: nn.Module, targets: Sequence[str] | str, *, block_size: int = 64, double_quantization: bool = True
) -> nn.Module:
    r"""Replace linear layers by bitsandbytes' 4-bit NF4 layers, in place; ``inject`` then puts any method on them.

        W₀ = c₂ · q,    q ∈ the 16 levels of NF4 (quantiles of a normal distribution, in [−1, 1])

    with one constant c₂ = max |w| for every block of the weight. Double quantisation keeps these in 8 bits, with one
    constant of 32 bits for 256 of them, and their mean: 4.13 bits an entry instead of 4.5 at the block size of 64.
    From here on W₀ is the dequantised matrix, in the dtype that the weight had; what was rounded away is gone.

    A ``Conv1D`` becomes such a layer as well, with its weight transposed, as transformers does it.

    Arguments:
        model: Any model, on the device it is to be trained on.
        targets: Glob patterns over full module names, the same as for ``inject``.
        block_size: Entries that share a constant, along the rows: 32, 64, … 4096.
        double_quantization: Whether the constants are quantised in turn.

    Returns:
        The model. Nothing is changed where an error is raised.

    Raises:
        DataError: bitsandbytes is not installed, or a weight is of a dtype that it does not know.
        NonFiniteError: A weight holds NaN or infinity.
        OptionError: The block size is none of those, or does not divide the number of inputs of a layer.
        TargetError: A pattern matches nothing, or no plain ``nn.Linear`` or ``Conv1D``.

    Source:
        Dettmers et al. 2023, "QLoRA", §3, equations 3 to 6; the package bitsandbytes, ``Linear4bit``.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32))
        >>> quantize(model, "0")[0].weight.nbytes  # 2048 entries in float32 were 8192 bytes
        1024
    """
    library = load_bitsandbytes()
    if block_size not in BLOCK_SIZES:
        raise OptionError(f"block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, not {block_size!r}")
    modules = dict(model.named_modules())
    patterns = pattern_list(targets)
    if not patterns:
        raise TargetError("no target is given; pass glob patterns over module names, as ['*.query', '*.value']")
    for name in matching(modules, patterns, "target", lambda m: isinstance(m, AdaptedLayer) or _is_plain(m)):
        source = modules[name]
        if isinstance(source, AdaptedLayer):
            raise TargetError(f"{name!r} already carries {source.method.name!r}; quantize the model before inject")
        weight = source.get_parameter("weight")
        if weight.dtype not in DTYPES:
            raise DataError(
                f"the weight of {name!r} is in {_plain_name(weight.dtype)}; 4-bit quantisation takes "
                f"{', '.join(map(_plain_name, DTYPES))}: convert the model first, for example by model.float()"
            )
        columns = weight.shape[0 if is_conv1d(source) else 1]
        if columns % block_size:  # the library's forward is wrong on some CPUs then; see ``dequantized``
            fitting = ", ".join(str(size) for size in BLOCK_SIZES if not columns % size)
            raise OptionError(
                f"block_size {block_size} does not divide the {columns} inputs of {name!r}; "
                + (f"choose {fitting}" if fitting else "leave this layer out")
            )
        if not bool(weight.isfinite().all()):
            raise NonFiniteError(f"the weight of {name!r} holds NaN or infinity and cannot be quantised")

    for name in matching(modules, patterns, "target", _is_plain):
        source = modules[name]
        weight = source.get_parameter("weight").detach()
        weight = weight.T if is_conv1d(source) else weight  # (out, in)
        rows, columns = weight.shape
        layer = library.nn.Linear4bit(
            columns,
            rows,
            bias=False,
            compute_dtype=weight.dtype,
            compress_statistics=double_quantization,
            quant_type="nf4",
            device="meta",
        )
        layer.weight = library.nn.Params4bit(
            weight,
            requires_grad=False,
            blocksize=block_size,
            compress_statistics=double_quantization,
            quant_type="nf4",
            module=layer,
        ).to(weight.device)
        layer.bias = getattr(source, "bias", None)
        # Evaluated on some CPUs, the library would repack the weight and round its constants to bfloat16: another W₀.
        layer.support_avx512bf16_for_cpu = False
        replace_module(model, name, layer.train(source.training))
    return model


def _is_plain(module: object) -> bool:
    return type(module) is nn.Linear or is_conv1d(module)


def _plain_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

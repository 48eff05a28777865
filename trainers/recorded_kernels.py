"""Which convolutions are recorded: whose weight [out, in, k…] is a matrix, plain or under an adapter that adds one."""

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from deltaw.adapters.errors import TargetError
from deltaw.adapters.modules import is_convolution, is_peft, kernel_of
from deltaw.adapters.peft.live import adds_a_kernel
from deltaw.adapters.peft.names import BASE_LAYER

logger = logging.getLogger(__name__)


def known_kernels(modules: Mapping[str, nn.Module], patterns: Sequence[str]) -> list[str]:
    """Return the names without those of convolutions that are not recorded, of which one line is logged.

    Arguments:
        modules: What the patterns match, by name.
        patterns: The glob patterns.

    Raises:
        TargetError: A pattern matches only such; names the first of them, and why.
    """
    left_out = {name: why for name, module in modules.items() if (why := _why_not(module)) is not None}
    for pattern in patterns:
        hits = [name for name in modules if fnmatchcase(name, pattern)]
        if hits and all(name in left_out for name in hits):
            raise TargetError(f"{hits[0]!r} is {left_out[hits[0]]}; leave it out of modules=")
    if left_out:
        name, why = next(iter(left_out.items()))
        logger.warning("not recorded: %d convolution(s), of them %r is %s", len(left_out), name, why)
    return [name for name in modules if name not in left_out]


def _why_not(module: nn.Module) -> str | None:
    """What a convolution is that is not recorded; ``None`` for one that is, and for a linear layer."""
    if not is_convolution(module):
        return None
    below = module.get_submodule(BASE_LAYER) if is_peft(module) else module
    kind = type(below).__name__
    if kernel_of(module):
        if not is_peft(module) or adds_a_kernel(module):
            return None
        tuner = type(module).__module__.removeprefix("peft.tuners.").partition(".")[0]
        return f"a {kind} under PEFT's {tuner}, and of convolutions LoRA, DoRA, LoHa and LoKr alone are recorded"
    if "Transpose" in kind:
        return f"a {kind}, whose kernel [in, out, k…] is not recorded"
    return f"a {kind} in {getattr(below, 'groups', 1)} groups, whose filters see different inputs; it is not recorded"

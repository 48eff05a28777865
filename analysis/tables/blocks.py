"""The heads and experts of a run's matrices, and what is said where they are not known."""

from collections.abc import Mapping, Sequence

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.blocks import Axis, Blocks, kernel_blocks, whole_matrix
from deltaw.analysis.names import kind_of
from deltaw.analysis.records.foreign.heads import GIVE, checked_heads, expert_of, head_blocks
from deltaw.analysis.tables.run import Run

PARTS = ("head", "expert", "entry")  # axes that not every matrix has
Heads = int | Mapping[str, int] | None
Counts = tuple[tuple[str, int], ...]  # the same, as what is measured is told it: in an order, and of plain values


def counts_of(heads: Heads) -> Counts:
    """Return counts of heads that were given, as what is measured is told them.

    Raises:
        OptionError: They are none.
    """
    return tuple(sorted(checked_heads(heads).items()))


def blocks_of(run: Run, module: str, axes: Sequence[Axis], heads: Counts = ()) -> dict[Axis, Blocks]:
    """Return the blocks of a matrix, as far as they are asked for and it has some.

    A linear layer has some along "head" and "expert", a convolution along "column" and "entry".
    """
    of_kernel = kernel_blocks(run.shape(module), run.source.kernel(module))
    found: dict[Axis, Blocks] = {axis: own for axis, own in of_kernel.items() if axis in axes}
    if "head" in axes:
        try:
            of_heads = _heads(run, module, heads)
        except OptionError:  # which ``left_out`` says, once for all modules
            of_heads = None
        if of_heads is not None:
            found["head"] = of_heads
    expert = expert_of(module) if "expert" in axes else None
    if expert is not None:
        whole = whole_matrix(run.shape(module))
        found["expert"] = Blocks(whole.side, whole.bounds, [(run.labels(module)["kind"], expert)])
    return found


def left_out(run: Run, modules: Sequence[str], axes: Sequence[Axis], heads: Counts = ()) -> list[str]:
    """Return what is said of attention matrices whose heads are not known: nothing, or one sentence."""
    reasons: dict[str, str] = {}
    for module in modules if "head" in axes else ():
        try:
            _heads(run, module, heads)
        except OptionError as error:
            reasons[module] = str(error)
    if not reasons:
        return []
    first = next(iter(reasons))
    many = f"{first} and {len(reasons) - 1} more" if len(reasons) > 1 else first
    return [f"{run.source.where}: axis 'head' is left out of {many}: {reasons[first]}"]


def nothing_along(run: Run, axes: Sequence[Axis]) -> str:
    """Return why a table of these axes alone has no row of a run, and what to do."""
    whose = {"head": "attention matrix with heads that are known", "expert": "expert (….experts.0.…) among its modules"}
    whose["entry"] = "convolution among its modules"
    lacks = " and no ".join(whose[axis] for axis in axes if axis in whose)
    return f"{run.source.where}: no row, as there is no {lacks}; ask for other axes" + (
        f", or {GIVE}" if "head" in axes else ""
    )


def _heads(run: Run, module: str, heads: Counts) -> Blocks | None:
    kind = run.labels(module)["kind"]
    named = None if kind == kind_of(module) else kind  # a pattern of the user's says what it is
    return head_blocks(module, run.shape(module), run.source.config, named, dict(heads))

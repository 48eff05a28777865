"""Glob patterns over the names of modules and parameters."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from deltaw.adapters.errors import TargetError


def matching(
    names: Iterable[str] | dict[str, object], patterns: Iterable[str], what: str, usable: object = None
) -> list[str]:
    """Return the names that any of the glob patterns match, in their own order.

    A pattern may name a container; then nothing usable is matched, and that is an error like a name that is not there.

    Raises:
        TargetError: A pattern matches nothing; the message lists near names.
    """
    lookup = names if isinstance(names, dict) else dict.fromkeys(names)
    accept = usable if callable(usable) else (lambda _: True)
    found: set[str] = set()
    for pattern in patterns:
        hits = [name for name in lookup if name and fnmatchcase(name, pattern)]
        good = [name for name in hits if accept(lookup[name])]
        if not good:
            raise TargetError(_no_match(pattern, what, hits, lookup, accept))
        found.update(good)
    return [name for name in lookup if name in found]


def _no_match(pattern: str, what: str, hits: list[str], lookup: dict[str, object], accept: object) -> str:
    if hits:
        kind = type(lookup[hits[0]]).__name__
        return (
            f"{what} {pattern!r} matches {hits[0]!r}, which is a {kind}; only nn.Linear, transformers' Conv1D "
            "and bitsandbytes' Linear4bit can be adapted (subclasses may bypass their own weight)"
        )
    usable = [name for name in lookup if name and callable(accept) and accept(lookup[name])]
    tails = {name.rsplit(".", 1)[-1] for name in usable}
    tail = pattern.rsplit(".", 1)[-1].strip("*")
    near = difflib.get_close_matches(pattern, usable, n=3, cutoff=0.5)
    near += [f"*.{t}" for t in difflib.get_close_matches(tail, tails, n=3, cutoff=0.4)]
    near = near or [f"*.{t}" if any("." in name for name in usable) else t for t in sorted(tails)[:8]]
    listed = ", ".join(dict.fromkeys(near)) or "no linear layer at all"
    return f"{what} pattern {pattern!r} matches nothing in the model; near it there is: {listed}"


def pattern_list(patterns: Sequence[str] | str) -> list[str]:
    """Return one pattern or several as a list."""
    return [patterns] if isinstance(patterns, str) else list(patterns)


def owners(name: str) -> set[str]:
    """Return a parameter's name and those of the modules that it is in."""
    return {name} | {name.rsplit(".", k)[0] for k in range(1, name.count(".") + 1)}

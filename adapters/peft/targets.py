"""Which layers an adapter's configuration means, by PEFT's rules for names, and the one match of a stranger's pattern.

PEFT hands patterns to Python's ``re``, with which ``(a+)+b`` takes time exponential in the length of a name. Here they
go to RE2, whose time is linear in the name times the pattern, and which refuses what grows beyond ``MEMORY``. RE2 knows
no lookahead; one outside groups, as in ``(?!.*vision).*q_proj``, is put together from two linear matches a position: in
time quadratic in the name, which has at most ``LONGEST`` characters. Whatever else of ``re`` RE2 has not (lookbehind,
back-references, atomic groups) is refused by name.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

from deltaw.adapters.errors import DeltawError, RecordError
from deltaw.adapters.peft.names import MODULES_TO_SAVE

LONGEST = 1000  # characters of a name, and of a pattern with a lookahead
LONGEST_PATTERN = 10_000
MEMORY = 2**20  # bytes of a pattern's program
PLAIN = re.compile(r"\w+", re.ASCII)
# What RE2 reads otherwise than ``re``: classes of POSIX and Unicode, quotes, inline flags, an open lower end.
OTHERWISE = re.compile(r"\[\[:|\\[CpPQEz]|\(\?[aimsUuxL-]|\{,")
LAYER = re.compile(r"((?:model\.)*(?:bert\.)?(?:layers|encoder\.layer|h)\.)(\d{1,9})(\..*)")  # what PEFT can replicate
LOOK = re.compile(r"\(\?[=!]")


@dataclass(frozen=True)
class Pattern:
    """A regular expression without or with one lookahead: ``head``, then not or yes ``ahead``, then ``tail``.

    Arguments:
        head: What stands before the lookahead; all of it where there is none.
        ahead: The lookahead.
        wanted: Whether it is to fit.
        tail: What stands after it.
    """

    head: Any
    ahead: Any = None
    wanted: bool = True
    tail: Any = None

    def fits(self, name: str) -> bool:
        """Return whether the whole name is matched."""
        if self.ahead is None:
            return self.head.fullmatch(name) is not None
        return any(
            (self.ahead.match(name, k) is not None) == self.wanted
            and self.tail.fullmatch(name, k) is not None
            and self.head.fullmatch(name, 0, k) is not None
            for k in range(len(name) + 1)
        )


def fits(
    pattern: Any, module: str, where: str, setting: str = "rank_pattern", error: type[DeltawError] = RecordError
) -> bool:
    """Return whether a key of ``rank_pattern`` or ``alpha_pattern`` names a module: the end of its name, or all.

    Arguments:
        pattern: The key.
        module: The module's full name.
        where: The file, for messages.
        setting: In which it stands, for messages.
        error: The class to raise.

    Raises:
        RecordError: Or what ``error`` says. It is no pattern, or none that can be matched in bounded time.
    """
    if isinstance(pattern, str) and PLAIN.fullmatch(pattern):
        return module == pattern or module.endswith(f".{pattern}")
    return _checked(pattern, r"(?:.*\.)?(?:", ")", module, where, setting, error).fits(module)


def fits_whole(pattern: Any, module: str, where: str, setting: str = "target_modules") -> bool:
    """Return whether a pattern matches a module's whole name; arguments and errors as ``fits``."""
    return _checked(pattern, "(?:", ")", module, where, setting, RecordError).fits(module)


def saved_whole(module: str, patterns: Iterable[Any], where: str, error: type[DeltawError] = RecordError) -> bool:
    """Return whether a module is, or lies in, one of ``modules_to_save``; arguments and errors as ``fits``."""
    before, after = r"(?:^|.*\.)(?:", r")(?:$|\..*)"
    return any(_checked(key, before, after, module, where, MODULES_TO_SAVE, error).fits(module) for key in patterns)


def targeted(config: Mapping[str, Any], names: Iterable[str], where: str) -> list[str]:
    """Return the layers that ``target_modules`` means, in the order in which they are given.

    Arguments:
        config: ``adapter_config.json``.
        names: All layers of the base.
        where: For messages.

    Raises:
        RecordError: An option is no list of names and no pattern, or see ``fits``.
    """
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    saved = _names(config.get(MODULES_TO_SAVE) or [], where)
    found = []
    for name in names:
        if _named(excluded, name, where, "exclude_modules") or saved_whole(name, saved, where):
            continue
        if _named(targets, name, where, "target_modules") and (
            isinstance(targets, str) or _in_layers(config, name, where)
        ):
            found.append(name)
    return found


def copied_layers(settings: Mapping[str, Any], where: str) -> Callable[[str], str]:
    """Return which module of the base a module is a copy of: by ``layer_replication``, else it is its own.

    The ranges say which layers of the base stand one after the other: [[0, 4], [2, 5]] is 0, 1, 2, 3, 2, 3, 4.

    Raises:
        RecordError: They are no ranges.
    """
    ranges = settings.get("layer_replication") if settings["peft_type"] == "LORA" else None
    if not ranges:
        return lambda module: module
    if not isinstance(ranges, list) or not all(
        isinstance(r, list) and len(r) == 2 and all(type(end) is int and end >= 0 for end in r) for r in ranges
    ):
        raise RecordError(f"{where}: layer_replication = {ranges!r:.60} is no list of ranges of layers")

    def original(module: str) -> str:
        found = LAYER.fullmatch(module)
        if found is None:
            return module
        left = int(found[2])
        for start, end in ranges:
            if left < max(0, end - start):
                return f"{found[1]}{start + left}{found[3]}"
            left -= max(0, end - start)
        raise RecordError(f"{where}: layer_replication makes no layer of {module}")

    return original


def with_parents(names: Iterable[str]) -> set[str]:
    """Return the names, and those of all modules that they lie in, with the model itself, ''."""
    parts = [name.split(".") for name in names]
    return {""} | {".".join(part[:k]) for part in parts for k in range(1, len(part) + 1)}


def _named(targets: Any, name: str, where: str, setting: str) -> bool:
    """Whether a pattern fits the whole name, or one of several names is its end."""
    if isinstance(targets, str):
        return fits_whole(targets, name, where, setting)
    return any(name == target or name.endswith(f".{target}") for target in _names(targets, where))


def _names(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise RecordError(f"{where}: {value!r:.60} is no list of modules")
    return value


def _in_layers(config: Mapping[str, Any], name: str, where: str) -> bool:
    """Whether a layer's number, the first in its name, is one of ``layers_to_transform``, if that is set."""
    numbers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    if numbers is None or numbers == []:
        return True
    heads = [patterns] if isinstance(patterns, str) else _names(patterns, where)
    before, heads = (r"(?:^|.*?\.)", heads) if heads else (r".*?\.", ["[^.]*"])
    for head in heads:
        pattern = _checked(head, before, r"\.(\d{1,9})\.", name, where, "layers_pattern", RecordError)
        found = pattern.head.match(name) if pattern.ahead is None else None
        if found is not None:
            return int(found.groups()[-1]) in (numbers if isinstance(numbers, list) else [numbers])
    return False


def _checked(
    pattern: Any, before: str, after: str, name: str, where: str, setting: str, error: type[DeltawError]
) -> Pattern:
    """The compiled pattern, with PEFT's own parts before and after it."""
    reason = ""
    if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN:
        reason = f"it is no text of at most {LONGEST_PATTERN} characters"
    elif len(name) > LONGEST or "\n" in name:
        reason = f"the module {name!r:.60} has a name of more than {LONGEST} characters, or of several lines"
    elif not name.isascii() and "\\" in pattern:
        reason = f"its classes are not known for the letters of {name!r:.60}"
    else:
        try:
            return _compiled(pattern, before, after)
        except _PatternError as found:
            reason = str(found)
    raise error(f"{where}: the pattern {pattern!r:.60} in {setting} is no expression that can be matched: {reason}")


class _PatternError(Exception):
    """Says why a pattern cannot be matched."""


@lru_cache(maxsize=4096)
def _compiled(pattern: str, before: str, after: str) -> Pattern:
    if OTHERWISE.search(pattern):
        raise _PatternError("it has flags or classes that RE2 reads otherwise; write the names out")
    parts = _at_lookahead(pattern)
    for part in parts:
        _re2(part)  # by itself first: "a)|(b" is none
    if len(parts) == 1:
        return Pattern(_re2(before + pattern + after))
    # Cut at the lookahead, each half of the group that ``before`` opens and ``after`` closes gets its other bracket.
    head, ahead, tail = parts
    wanted = pattern[len(head) : len(head) + 3] == "(?="
    return Pattern(_re2(f"{before}{head})"), _re2(ahead), wanted, _re2(f"(?:{tail}{after}"))


def _re2(pattern: str) -> Any:
    options = re2.Options()
    options.max_mem, options.log_errors = MEMORY, False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise _PatternError(f"{text!r:.80}; write the names out") from None


def _at_lookahead(pattern: str) -> tuple[str, ...]:
    """Split a pattern at its only lookahead: before it, in it, after it; the pattern alone where there is none."""
    depth, start, end, alternatives = 0, -1, -1, False
    for k, letter in _syntax(pattern):
        if letter == "(":
            if LOOK.match(pattern, k):
                if depth or start >= 0:
                    raise _PatternError("of lookaheads only one is read, outside groups; write the names out")
                start = k
            depth += 1
        elif letter == ")":
            depth -= 1
            end = k if depth == 0 and start >= 0 > end else end
        else:
            alternatives = alternatives or depth == 0
    if start < 0:
        return (pattern,)
    if len(pattern) > LONGEST:
        raise _PatternError(f"with a lookahead, at most {LONGEST} characters are read; write the names out")
    if alternatives or end < 0:
        raise _PatternError("a lookahead beside alternatives is not read; put these into a group")
    return pattern[:start], pattern[start + 3 : end], pattern[end + 1 :]


def _syntax(pattern: str) -> Iterator[tuple[int, str]]:
    """The brackets and bars of a pattern that are no literal letters, with their places."""
    escaped, opened = False, -1  # where a class [...] began
    for k, letter in enumerate(pattern):
        if escaped or letter == "\\":
            escaped = not escaped
        elif opened >= 0:
            first = pattern[opened + 1 : k] in ("", "^")  # "]" stands for itself there
            opened = -1 if letter == "]" and not first else opened
        elif letter == "[":
            opened = k
        elif letter in "()|":
            yield k, letter

"""Which layers an adapter's configuration means, by PEFT's rules for names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from deltaw.adapters.errors import RecordError


def fits(pattern: Any, module: str, where: str) -> bool:
    """Return whether a key of ``rank_pattern`` or ``alpha_pattern`` names a module: the end of its name, or all.

    Raises:
        RecordError: See ``checked``.
    """
    return re.match(rf"(.*\.)?({checked(pattern, where)})$", module) is not None


def checked(pattern: Any, where: str) -> str:
    """Return a pattern of a stranger's configuration, where it can be searched for in short time.

    Raises:
        RecordError: It is none, or could search for ever: repeated groups and many repetitions are refused.
    """
    if not isinstance(pattern, str) or len(pattern) > 1000:
        raise RecordError(f"{where}: {pattern!r:.60} is no pattern of modules")
    loops = len(re.findall(r"(?<!\\)[*+{]", pattern))
    if loops > 4 or re.search(r"\)[*+{]", pattern) or "(?" in pattern:
        raise RecordError(f"{where}: the pattern {pattern!r:.60} is too costly to search for; write the names out")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise RecordError(f"{where}: {pattern!r:.60} is no pattern of modules ({error})") from None
    return pattern


def targeted(config: Mapping[str, Any], names: Iterable[str], where: str) -> list[str]:
    """Return the layers that ``target_modules`` means, in the order in which they are given.

    Arguments:
        config: ``adapter_config.json``.
        names: All layers of the base.
        where: For messages.

    Raises:
        RecordError: An option is no list of names and no pattern, or a pattern is too costly.
    """
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    saved = [checked(name, where) for name in _names(config.get("modules_to_save") or [], where)]
    found = []
    for name in names:
        if _named(excluded, name, where) or any(re.match(rf"(^|.*\.){key}($|\..*)", name) for key in saved):
            continue
        if _named(targets, name, where) and (isinstance(targets, str) or _in_layers(config, name, where)):
            found.append(name)
    return found


def _named(targets: Any, name: str, where: str) -> bool:
    """Whether a pattern fits the whole name, or one of several names is its end."""
    if isinstance(targets, str):
        return re.fullmatch(checked(targets, where), name) is not None
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
    tries = [rf"(?:^|.*?\.){checked(head, where)}\.(\d{{1,9}})\." for head in heads] or [r".*?\.[^.]*\.(\d{1,9})\."]
    match = next((found for pattern in tries if (found := re.match(pattern, name))), None)
    return match is not None and int(match.groups()[-1]) in (numbers if isinstance(numbers, list) else [numbers])

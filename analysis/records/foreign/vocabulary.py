"""The texts of tokens, from the files of a tokenizer: a stranger's words, of which a few are shown."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from deltaw.adapters.errors import RecordError
from deltaw.adapters.small_files import JSON_LIMIT
from deltaw.analysis.printable import printable
from deltaw.analysis.records.source import Source
from deltaw.analysis.records.storage.files import Storage
from deltaw.analysis.records.storage.location import storage_of

logger = logging.getLogger(__name__)
FILES = ("tokenizer.json", "vocab.json", "vocab.txt")  # the first that is there
LONGEST = 60  # characters of a token that are shown


def token_texts(source: Source, wanted: Collection[int], tokenizer: str | Path | None = None) -> dict[int, str]:
    """Return the texts of some tokens, as the vocabulary writes them (Ġ and ▁ for a space), as far as they are known.

    Looked for beside the last checkpoint, then beside the base. What cannot be read there is said once and passed over.

    Arguments:
        source: A run's.
        wanted: The numbers of the tokens.
        tokenizer: A folder or an address with the tokenizer's files, in their place.

    Raises:
        RecordError: The ``tokenizer`` that was given has none of the files, or a damaged one.
    """
    if tokenizer is not None:
        storage, file = storage_of(tokenizer)
        name = file or next((name for name in FILES if storage.has(name)), None)
        if name is None:
            raise RecordError(f"{storage.where}: holds no tokenizer ({', '.join(FILES)}); give the folder that does")
        return _texts(storage, name, wanted)
    for storage in _folders(source):
        for name in FILES:
            if storage.has(name):
                try:
                    return _texts(storage, name, wanted)
                except RecordError as error:
                    logger.warning("%s; tokens are shown without their text", printable(str(error)))
                    return {}
    return {}


def _folders(source: Source) -> Iterator[Storage]:
    for step in (source.steps[-1] if source.steps else None, None):
        for storage, _ in source.places(step) or ():
            yield storage


def _texts(storage: Storage, name: str, wanted: Collection[int]) -> dict[int, str]:
    ids, found = set(wanted), {}
    for text, number in _entries(storage, name):
        if type(number) is int and number in ids and isinstance(text, str):
            found[number] = printable(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")
    return found


def _entries(storage: Storage, name: str) -> Iterable[tuple[Any, Any]]:
    """Return texts and numbers as they stand there, each of any type."""
    if name.endswith(".txt"):
        size = storage.size(name)
        if size > JSON_LIMIT:
            raise RecordError(f"{storage.file(name)}: has {size} bytes; a vocabulary here has at most {JSON_LIMIT}")
        lines = bytes(storage.read(name, 0, size, size)).decode("utf-8", "replace").split("\n")
        return ((line.rstrip("\r"), number) for number, line in enumerate(lines))
    whole = storage.mapping(name)
    if "model" not in whole or not isinstance(whole["model"], dict):
        return whole.items()
    vocabulary, added = whole["model"].get("vocab"), whole.get("added_tokens")
    entries: list[tuple[Any, Any]] = []
    if isinstance(vocabulary, dict):
        entries += vocabulary.items()
    elif isinstance(vocabulary, list):  # Unigram: [text, score] in the order of the numbers
        pairs = (pair[0] if isinstance(pair, list) and pair else None for pair in vocabulary)
        entries += ((text, number) for number, text in enumerate(pairs))
    if isinstance(added, list):
        entries += ((token.get("content"), token.get("id")) for token in added if isinstance(token, dict))
    return entries

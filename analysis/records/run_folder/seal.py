"""The seal of a run: how far its index reached, so that a line missing at the end is seen, too.

``seal.json`` is {"closed": …, "checkpoints": [[COUNT, CHECK], …]}: the index has at least COUNT lines, and the line of
that number has that check. Where there are several pairs one of them holds: an index that is rewritten is announced
first, and the old one is still there after a crash in between. Where ``closed``, nothing follows, and the log ends in
its final line; it is false from the moment a recorder opens the run.
"""

import json
from dataclasses import dataclass
from typing import Any

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.run_folder.checked_lines import last_line, lines_of

SEAL = "seal.json"


@dataclass(frozen=True)
class Seal:
    """What the seal says.

    Arguments:
        closed: Whether the recorder was closed.
        reached: Pairs of a number of lines and the check of the last of them, of which one holds.

    Example:
        >>> Seal(False, ((0, ""),)).to_json()
        '{"closed": false, "checkpoints": [[0, ""]]}\\n'
    """

    closed: bool
    reached: tuple[tuple[int, str], ...]

    def to_json(self) -> str:
        """The text of ``seal.json``."""
        return json.dumps({"closed": self.closed, "checkpoints": [list(pair) for pair in self.reached]}) + "\n"


def sealed(index: bytes, *, closed: bool = False) -> Seal:
    """Return the seal of an index."""
    return Seal(closed, (_end(index),))


def parse_seal(data: bytes, where: str) -> Seal:
    """Return what the bytes of a seal say.

    Raises:
        RecordError: They are not as this module writes them.
    """
    try:
        raw: Any = json.loads(data)
        seal = Seal(raw["closed"] is True, tuple((count, check) for count, check in raw["checkpoints"]))
        if seal.to_json().encode() == data:
            return seal
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise RecordError(f"{where}: is damaged, it is no seal; deltaw repair makes another from what is whole")


def broken_seal(seal: Seal, index: bytes, log: bytes | None) -> str | None:
    """Return what is missing at the end of an index or log, ``None`` where both reach as far as the seal says.

    Arguments:
        seal: The seal.
        index: The bytes of the index.
        log: The bytes of the log, ``None`` where there is none.
    """
    checks = {0: ""} | dict(enumerate((line.check for line in lines_of(index) if not line.repeated), start=1))
    if not any(checks.get(count) == check for count, check in seal.reached):
        reached = max(count for count, _ in seal.reached) if seal.reached else 0
        return f"the index ends at line {len(checks) - 1}, the seal knows of {reached} lines, or of another last one"
    if not seal.closed:
        return None
    if not any(len(checks) - 1 == count for count, _ in seal.reached) or index[-1:] not in (b"", b"\n"):
        return "the index goes on behind the end that the seal knows of"
    if log is not None:
        last = last_line(log)
        if log[-1:] != b"\n" or last is None or (last.checked and not last.final):
            return "the end of the log is missing or was changed"
    return None


def _end(index: bytes) -> tuple[int, str]:
    lines = [line for line in lines_of(index) if not line.repeated]
    return len(lines), lines[-1].check if lines else ""

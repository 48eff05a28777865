"""The parts of a report are made apart: what goes wrong in one is said in its place, and the others go on."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deltaw.adapters.errors import DeltawError, DeltawWarning
from deltaw.analysis.printable import printable
from deltaw.analysis.trajectory import Trajectory

logger = logging.getLogger(__name__)


def short(place: str) -> str:
    """Return a folder or file without what stands before its name; other texts as they are.

    Example:
        >>> short("/home/me/models/base/"), short("roberta-base"), short("org/model")
        ('base', 'roberta-base', 'org/model')
    """
    return place.replace("\\", "/").rstrip("/").rpartition("/")[2] if place.startswith(("/", "\\", "~")) else place


class Notes:
    """What is to be said of each part: why it is empty, or what it leaves out.

    Arguments:
        runs: In the notes their places are told by their names, so that a report tells no folder of its author's.
    """

    def __init__(self, runs: Sequence[Trajectory]) -> None:
        self.by_part: dict[str, list[str]] = {}
        # The longest first: a run's folder may lie in another's.
        names = [(str(run.source.where), run.name) for run in runs]
        names += [(run.base_from, short(run.base_from)) for run in runs if run.base_from is not None]
        self._names = sorted(names, key=lambda pair: -len(pair[0]))

    def add(self, part: str, text: str, begin: str = "") -> None:
        """Add a sentence to a part, once; with a beginning, unless it begins so already."""
        for where, name in self._names:
            text = text.replace(where, name)
        text = text if text.startswith(begin) else begin + text
        notes = self.by_part.setdefault(part, [])
        if (shown := printable(text)) not in notes:
            notes.append(shown)

    @contextmanager
    def part(self, name: str, begin: str = "") -> Iterator[None]:
        """Turn what is raised, and deltaw's own warnings, into notes of a part.

        Arguments:
            name: The part.
            begin: What each note begins with, as the run's name.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            except (DeltawError, OSError) as error:
                self.add(name, str(error), begin)
            except Exception as error:  # a view that is missing is better than no report of a run of days
                logger.warning("the report's part %s: %s", name, error, exc_info=True)
                self.add(name, f"{type(error).__name__}: {error}", begin)
        for found in caught:
            if issubclass(found.category, DeltawWarning):
                self.add(name, str(found.message), begin)
            else:
                warnings.warn_explicit(found.message, found.category, found.filename, found.lineno)

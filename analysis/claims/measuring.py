"""The measures that a claim may name, with what each takes and which tables of the runs it needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from deltaw.adapters.errors import OptionError
from deltaw.analysis.claims.arguments import Argument

if TYPE_CHECKING:
    from deltaw.analysis.claims.interval import Measured
    from deltaw.analysis.claims.rules import Parts

TABLES = ("consecutive", "initial", "base", "spectra", "regions", "geometry", "intruders", "distances")


@dataclass(frozen=True)
class Need:
    """A table that has to be measured for a claim, in the runs of some methods.

    Arguments:
        table: A field of ``Evidence``: one of ``TABLES``.
        methods: Those of its runs that are compared.
        kinds: Kinds of matrices; none for the one that most papers look at, "query" where there is one.
        axes: Of changes; none for rows and columns.
        columns: Of the geometry; none for all.
    """

    table: str
    methods: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise OptionError(f"a measure needs the table {self.table!r}; choose from {', '.join(TABLES)}")


@dataclass(frozen=True)
class Measure:
    """A number that claims are about.

    Arguments:
        about: It in one line.
        find: find(evidence, **arguments) returns the number with its interval, or several as ``Parts``; it raises
            ``Undecidable`` where the runs lack something. Or its path, "package.module:function", which is imported
            when a claim is decided.
        arguments: What it takes, by name.
        needs: needs(**arguments) returns the tables that have to be measured; results of runs are always there.

    Example:
        >>> from deltaw.analysis.claims.arguments import text
        >>> from deltaw.analysis.claims.evidence import Evidence
        >>> from deltaw.analysis.claims.interval import Measured
        >>> steps = Measure("how many runs there are", lambda evidence, method: Measured(1.0, None), {"method": text()})
        >>> steps.load()(Evidence(), method="lora").statistic
        1.0
    """

    about: str
    find: "Callable[..., Measured | Parts] | str"
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    needs: Callable[..., tuple[Need, ...]] = lambda **given: ()

    def load(self) -> "Callable[..., Measured | Parts]":
        """Return ``find``; import it if need be."""
        if not isinstance(self.find, str):
            return self.find
        module, _, name = self.find.partition(":")
        found: Callable[..., Measured | Parts] = getattr(import_module(module), name)
        return found


def of_methods(table: str, *names: str, **more: Any) -> Callable[..., tuple[Need, ...]]:
    """Return the needs of a measure whose arguments ``names`` are methods, or tables with a method."""

    def needs(**given: Any) -> tuple[Need, ...]:
        values = [given[name] for name in names if given.get(name) is not None]
        methods = [value["method"] if isinstance(value, Mapping) else value for value in values]
        return (Need(table, tuple(dict.fromkeys(methods)), **more),)

    return needs

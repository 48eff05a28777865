"""Where packs are: shipped with deltaw, brought by a package (entry point ``deltaw.packs``), or a file."""

import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.adapters.errors import DataError, DeltawWarning, OptionError, PackError
from deltaw.analysis.printable import printable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from deltaw.analysis.claims.pack import Pack

ENTRY_POINTS = "deltaw.packs"
SHIPPED = ("dora", "bora", "sbora", "dual-lora", "bidora", "delora", "map", "path-not-taken", "lora-vs-full")


def shipped_file(name: str) -> Path:
    """Return the file of a pack that comes with deltaw."""
    return Path(__file__).parent / "shipped" / f"{name}.toml"


class Packs(Mapping[str, "Pack"]):
    """The packs by name; one is read when it is asked for, and its names are there without reading any."""

    def __init__(self) -> None:
        self._points: dict[str, EntryPoint] | None = None

    def _installed(self) -> "dict[str, EntryPoint]":
        """Those of installed packages, which are looked up once."""
        if self._points is None:
            from importlib.metadata import entry_points  # not above: a call that names one of ours need not wait for it

            self._points = {}
            for point in entry_points(group=ENTRY_POINTS):
                if point.name in SHIPPED or point.name in self._points:
                    said = f"the pack {point.name!r} of {_package(point)} has a name that is taken; it is left out"
                    warnings.warn(said, DeltawWarning, stacklevel=2)
                else:
                    self._points[point.name] = point
        return self._points

    def __getitem__(self, name: str) -> "Pack":
        if name in SHIPPED:
            return _shipped(name)
        return _of_package(self._installed()[name])

    def __contains__(self, name: object) -> bool:
        return name in SHIPPED or name in self._installed()

    def __iter__(self) -> Iterator[str]:
        return iter([*SHIPPED, *self._installed()])

    def __len__(self) -> int:
        return len(SHIPPED) + len(self._installed())

    def __repr__(self) -> str:
        return f"Packs({', '.join(self)})"


PACKS = Packs()


def packs() -> "dict[str, Pack]":
    """Return all packs by name: those that come with deltaw, and those of installed packages.

    Raises:
        PackError: One of them cannot be read.

    Example:
        >>> packs()["bora"]
        Pack(bora: BoRA, 51 claims)
    """
    return dict(PACKS)


def find_pack(pack: "str | Path | Pack") -> "Pack":
    """Return a pack by its name, or from a file of TOML by its path.

    Raises:
        OptionError: There is no pack of that name, and no such file.
        PackError: The file is no pack.

    Example:
        >>> find_pack("dora").paper.year
        2024
    """
    from deltaw.analysis.claims.pack import Pack
    from deltaw.analysis.claims.schema import load_pack

    if isinstance(pack, Pack):
        return pack
    if isinstance(pack, str) and pack in PACKS:
        return PACKS[pack]
    path = Path(pack)
    if path.suffix == ".toml" or path.is_file():
        if not path.exists():
            raise OptionError(f"{printable(str(path))}: there is no such file")
        return load_pack(path)
    raise OptionError(
        f"there is no pack {printable(str(pack))!r}; choose from {', '.join(map(printable, PACKS))}, "
        "or give the path of a .toml file"
    )


@cache
def _shipped(name: str) -> "Pack":
    from deltaw.analysis.claims.schema import load_pack

    return load_pack(shipped_file(name), source="deltaw")


@cache
def _of_package(point: "EntryPoint") -> "Pack":
    """A package's pack: the entry point is a ``Pack``, or the path of a TOML file, or a function that returns one."""
    from deltaw.analysis.claims.pack import Pack
    from deltaw.analysis.claims.schema import load_pack

    try:
        found = point.load()
        found = found() if callable(found) else found
    except (ImportError, AttributeError) as error:
        raise DataError(f"the pack {point.name!r} of {_package(point)} cannot be loaded ({error})") from None
    if isinstance(found, Pack):
        return found
    if isinstance(found, (str, Path)):
        return load_pack(found, source=_package(point))
    raise PackError(
        f"the pack {point.name!r} of {_package(point)} is {found!r:.60}; it has to be a Pack, a path of a .toml file, "
        "or a function that returns one"
    )


def _package(point: "EntryPoint") -> str:
    return "a package" if point.dist is None else point.dist.name

"""The registry of methods: a line each, loaded when it is asked for.

Other people's packages add methods of theirs by an entry point of the group ``deltaw.methods``:

    [project.entry-points."deltaw.methods"]
    mine = "my_package.mine:Mine"

and a script by ``METHODS["mine"] = Mine``. From then on inject, the recorder, the readers, the tables, the figures and
the command line know it by this name; nothing else has to be edited.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from deltaw.adapters.errors import DataError, OptionError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from deltaw.adapters.method import Method

    Factory = Callable[..., Method]

ENTRY_POINTS = "deltaw.methods"


@dataclass(frozen=True)
class _Own:
    """A method of deltaw's own: its class in a file of this folder, and the options that make the variant."""

    where: str
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> "Factory":
        module, _, name = self.where.partition(":")
        found: Factory = getattr(import_module(f"deltaw.adapters.methods.{module}"), name)
        return partial(found, **self.options) if self.options else found


@dataclass(frozen=True)
class _Installed:
    """A method of another package, as its entry point names it."""

    point: "EntryPoint"

    def load(self) -> "Factory":
        found: Factory = self.point.load()
        return found

    @property
    def package(self) -> str:
        return "a package" if self.point.dist is None else self.point.dist.name


class Methods(MutableMapping[str, "Factory"]):
    """METHODS: name → class or factory, in the order of tables and figures. Its names are there without loading any."""

    def __init__(self, own: dict[str, _Own]) -> None:
        self._entries: dict[str, _Own | _Installed | Factory] = dict(own)
        self._looked_up = False

    def _known(self) -> "dict[str, _Own | _Installed | Factory]":
        """The entries with those of installed packages, which are looked up once."""
        if not self._looked_up:
            self._looked_up = True
            from importlib.metadata import entry_points  # not above: a call that needs no method need not wait for it

            for point in entry_points(group=ENTRY_POINTS):
                if point.name in self._entries:
                    package = _Installed(point).package
                    warnings.warn(
                        f"the method {point.name!r} of {package} has a name that is taken; it is left out", stacklevel=2
                    )
                else:
                    self._entries[point.name] = _Installed(point)
        return self._entries

    def __getitem__(self, name: str) -> "Factory":
        entry = self._entries[name] if name in self._entries else self._known()[name]
        if isinstance(entry, (_Own, _Installed)):
            try:
                entry = entry.load()
            except (ImportError, AttributeError) as error:
                where = f" of {entry.package}" if isinstance(entry, _Installed) else ""
                raise DataError(f"the method {name!r}{where} cannot be loaded ({error})") from None
            self._entries[name] = entry
        return entry

    def __setitem__(self, name: str, factory: "Factory") -> None:
        if not callable(factory):
            raise OptionError(
                f"METHODS[{name!r}] must be a class of Method, or a function that makes one, not {factory!r}"
            )
        self._known()[name] = factory

    def __delitem__(self, name: str) -> None:
        del self._known()[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._known()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def __repr__(self) -> str:
        return f"Methods({', '.join(self)})"


METHODS = Methods(
    {
        "ft": _Own("full:FullFineTuning"),
        "galore": _Own("galore:GaLore"),
        "lora": _Own("lora:LoRA"),
        "lora+": _Own("lora_plus:LoRAPlus"),
        "rslora": _Own("lora:LoRA", {"rank_stabilized": True}),
        "lora-fa": _Own("lora_fa:LoRAFA"),
        "asylora": _Own("asylora:AsyLoRA"),
        "oa": _Own("oa:OrthogonalAdaptation"),
        "pissa": _Own("pissa:PiSSA"),
        "corda": _Own("corda:CorDA"),
        "delta-lora": _Own("delta_lora:DeltaLoRA"),
        "adalora": _Own("adalora:AdaLoRA"),
        "delora": _Own("delora:DeLoRA"),
        "vera": _Own("vera:VeRA"),
        "dora": _Own("dora:DoRA"),
        "dora-row": _Own("dora:DoRA", {"axis": "row"}),
        "bidora": _Own("bidora:BiDoRA"),
        "magnitude": _Own("magnitude:Magnitude"),
        "dvora": _Own("vera:DVoRA"),
        "bora": _Own("bora:BoRA"),
        "sbora-fa": _Own("sbora:SBoRA"),
        "sbora-fb": _Own("sbora:SBoRA", {"variant": "FB"}),
        "map": _Own("map:MAP"),
        "oft": _Own("oft:OFT"),
        "mora": _Own("mora:MoRA"),
        "hira": _Own("hira:HiRA"),
        "randlora": _Own("randlora:RandLoRA"),
        "dual-lora": _Own("dual_lora:DualLoRA"),
    }
)


def create(name: str, **options: Any) -> "Method":
    """Make a method from its name and plain options, as the command line and a record give them.

    Raises:
        OptionError: There is no such method, or it has no such option; the message lists what there is.

    Example:
        >>> from deltaw.adapters import create
        >>> create("dora-row", rank=4).name
        'dora-row'
    """
    if name not in METHODS:
        raise OptionError(f"there is no method {name!r}; choose one of {', '.join(METHODS)}")
    known = options_of(name)
    for option in options:
        if option not in known:
            raise OptionError(f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    for option, value in options.items():
        if isinstance(value, int) and abs(value) >= 2**63:  # which no tensor counts, and no float holds beyond 10^308
            raise OptionError(f"{name} cannot have {option} = {value:#x}"[:200] + "; a number is below 2^63")
    try:
        return METHODS[name](**options)
    except (TypeError, OverflowError) as error:  # of a comparison, where a text stands for a number
        raise OptionError(f"{name} cannot have the options {options!r:.200} ({error})") from error


def options_of(name: str) -> tuple[str, ...]:
    """Return the names of a method's options; of an unknown method there are none."""
    return tuple(inspect.signature(METHODS[name]).parameters) if name in METHODS else ()


def title(name: str) -> str:
    """Return the method's name as the papers write it; an unknown one stays as it is.

    Example:
        >>> title("dora-row"), title("mine")
        ('DoRA (row)', 'mine')
    """
    method = _example(name)
    return name if method is None else method.title


def look(name: str) -> tuple[str, str] | None:
    """Return the colour and the marker that a method's own file names, or ``None``."""
    method = _example(name)
    return None if method is None else method.look


def _example(name: str) -> "Method | None":
    """The method with its defaults; ``None`` where there is none, or it has none."""
    try:
        return METHODS[name]() if name in METHODS else None
    except (DataError, OptionError, TypeError):  # it cannot be loaded, or has options without a default
        return None

"""Reads a pickle into plain values and empty records, whatever it asks for; nothing of it runs.

The pickles of torch, of a few kilobytes, come from strangers. A few hundred bytes of one can stand for 2^1000 nested
tuples, since what was made once is used again, and whoever hashes, compares or writes such a value out never comes to
an end. So keys are plain and checked before they are hashed, a call only makes a record, and who uses a value here
checks its type before anything else. Time and memory grow with the pickle alone, of at most ``PICKLE_LIMIT`` bytes.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

from typing_extensions import override

PICKLE_LIMIT = 50_000_000  # bytes
KEY_PARTS = 8  # of a key that is a tuple


class Record:
    """Stands for any object: keeps the state that it was given, does nothing."""

    state: Any = None

    def get(self, key: str) -> Any:
        """Return a field, ``None`` where there is none."""
        return self.state.get(key) if isinstance(self.state, dict) else None


class Call:
    """Stands for a function that is known: what it is given becomes what it makes."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


MAPPING = Call(lambda *args: dict(args[0]) if args and type(args[0]) is dict else {})  # OrderedDict, Counter
FIRST = Call(lambda *args: args[0] if args else None)  # torch.Size, dict


class PlainUnpickler(pickle._Unpickler):
    """Reads a pickle. In Python, not C: its memory grows with the file alone.

    A subclass says in ``find_class`` which ``Call`` or class of ``Record`` a name stands for.
    """

    # Instructions that set aside memory by a number in the file, hash what is nested, or reach outside.
    dispatch: ClassVar[dict[int, Any]] = {
        code: do
        for code, do in pickle._Unpickler.dispatch.items()
        if bytes([code])
        not in (
            pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.PERSID, pickle.BINPERSID,
            pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.FROZENSET, pickle.ADDITEMS,
            pickle.EMPTY_SET, pickle.DICT, pickle.NEWOBJ_EX,
        )
    }  # fmt: skip

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))

    @override
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}")

    def load_setitem(self) -> None:
        """Set one entry of a mapping; its key is plain."""
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._set([key, value])

    def load_setitems(self) -> None:
        """Set several entries."""
        self._set(self.pop_mark())  # type: ignore[attr-defined]

    def _set(self, items: list[Any]) -> None:
        into = self.stack[-1]  # type: ignore[attr-defined]
        if type(into) is not dict:
            raise pickle.UnpicklingError("entries are put into what is no mapping")
        for k in range(0, len(items) - 1, 2):
            if not _is_key(items[k]):
                raise pickle.UnpicklingError(f"a key is a {type(items[k]).__name__}")
            into[items[k]] = items[k + 1]

    def load_append(self) -> None:
        """Append to a list."""
        item = self.stack.pop()  # type: ignore[attr-defined]
        self._extend([item])

    def load_appends(self) -> None:
        """Append several."""
        self._extend(self.pop_mark())  # type: ignore[attr-defined]

    def _extend(self, items: list[Any]) -> None:
        into = self.stack[-1]  # type: ignore[attr-defined]
        if type(into) is not list:
            raise pickle.UnpicklingError("values are appended to what is no list")
        into.extend(items)

    def load_reduce(self) -> None:
        """Make what a call stands for."""
        args, func = self.stack.pop(), self.stack[-1]  # type: ignore[attr-defined]
        self.stack[-1] = self._made(func, args)  # type: ignore[attr-defined]

    def load_newobj(self) -> None:
        """Make a new object."""
        args, kind = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self.append(self._made(kind, args))  # type: ignore[attr-defined]

    def _made(self, func: Any, args: Any) -> Any:
        if type(args) is not tuple:
            raise pickle.UnpicklingError("a call has no plain arguments")
        if isinstance(func, Call):
            return func.make(*args)
        if isinstance(func, type) and issubclass(func, Record):
            return func()
        raise pickle.UnpicklingError("something is called that cannot be")

    def load_build(self) -> None:
        """Give a record its state; what a mapping has beside its entries is left out."""
        state, into = self.stack.pop(), self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(into, Record):
            into.state = state
        elif type(into) is not dict:
            raise pickle.UnpicklingError("a state is given to what has none")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build


def whole_sizes(raw: Any, most: int = 8) -> tuple[int, ...]:
    """Return the sizes, strides or offsets of a tensor, or raise where they are none.

    Raises:
        ValueError: They are no tuple or list of at most ``most`` whole numbers from 0 to 2^62.
    """
    if type(raw) not in (tuple, list) or len(raw) > most:
        raise ValueError(f"sizes are no tuple of at most {most}")
    for size in raw:
        if type(size) is not int or not 0 <= size < 2**62:
            raise ValueError("a size is no whole number")
    return tuple(raw)


def said(error: Exception) -> str:
    """Return what an error of a pickle says, in one line that is not long."""
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]


def _is_key(key: Any) -> bool:
    if type(key) is tuple:
        return len(key) <= KEY_PARTS and all(type(part) in (str, int) for part in key)
    return key is None or type(key) in (str, int, float, bool, bytes) or isinstance(key, Record)

"""Work that is lost as its process ended, or as there was no memory for it."""

import torch

from deltaw.adapters.errors import DeltawError

# What torch says where the operating system refuses memory; on a GPU it has an error of its own.
_REFUSED = ("can't allocate memory", "not enough memory")


class LostError(DeltawError):
    """A process ended in the middle of its work, or had not the memory for it.

    Arguments:
        how: How that was, as "was killed by SIGKILL".
    """

    def __init__(self, how: str) -> None:
        super().__init__(f"its process {how}")
        self.how = how

    def __reduce__(self) -> tuple[type["LostError"], tuple[str]]:
        return LostError, (self.how,)


def wants_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no memory.

    Example:
        >>> wants_memory(MemoryError()), wants_memory(ValueError("can't allocate memory"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSED)

"""Loading other people's models: no notices, and short reasons."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the notices of transformers (a new head, say) out of the output while its functions run."""
    before = transformers_logging.get_verbosity()
    quieter: Any = transformers_logging  # its functions are not typed
    quieter.set_verbosity_error()
    quieter.disable_progress_bar()
    try:
        yield
    finally:
        quieter.set_verbosity(before)
        quieter.enable_progress_bar()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().split("\n")[0]

"""The project's errors. Each says what is wrong, where, and what to do next."""


class DeltawError(ValueError):
    """Base of every error that a user's input can cause; always a ``ValueError``."""


class DeltawWarning(UserWarning):
    """Something was left out or done otherwise than asked for; the message says what and why."""


class OptionError(DeltawError):
    """An option has a value that the method or the function cannot take."""


class TargetError(DeltawError):
    """A pattern over module names matches nothing, or something that cannot be adapted."""


class ShapeError(DeltawError):
    """Two tensors that belong together differ in shape."""


class NonFiniteError(DeltawError):
    """A weight holds NaN or infinity."""


class RecordError(DeltawError):
    """A run folder is not one, is damaged, or holds another run."""


class WriteError(DeltawError):
    """A file cannot be written: a full disk, a missing right."""


class DataError(DeltawError):
    """A data file or a model folder cannot be used as it is."""


class PackError(DeltawError):
    """A pack of claims is not written as one; names the file, the line and the key."""

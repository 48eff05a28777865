from .inspect import inspect_run as inspect_run

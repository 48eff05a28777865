"""How the threads of torch wait for each other; the command line chooses before torch is loaded."""

import os
import sys
from collections.abc import MutableMapping

# Each of them decides how long a thread without work keeps its core busy: OpenMP's own, GNU's, LLVM's and Intel's.
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_asleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have threads that wait sleep, where the user has chosen nothing, and torch, which reads it once, is not loaded.

    By default they spin, each on a core that another process could use. And where one of them has lost its core to such
    a process, all others spin until it comes back, at every product of two matrices.

    Example:
        >>> environment = {"GOMP_SPINCOUNT": "10000"}
        >>> wait_asleep(environment)
        >>> environment
        {'GOMP_SPINCOUNT': '10000'}
    """
    if "torch" not in sys.modules and not any(name in environment for name in POLICIES):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"

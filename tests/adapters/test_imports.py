"""What importing the adapters must not import."""

import subprocess
import sys

import pytest

CODE = """
import sys
import {module}
assert "torch._dynamo" not in sys.modules and "numba" not in sys.modules, sorted(sys.modules)
"""


@pytest.mark.parametrize("module", ["deltaw.adapters.layer"])
def test_neither_of_the_compilers_is_imported(module):
    subprocess.run([sys.executable, "-c", CODE.format(module=module)], check=True)

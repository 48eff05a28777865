"""Run every notebook from the first cell to the last, in an empty folder; the notebooks themselves stay as they are."""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SECONDS_A_CELL = 600


def main() -> int:
    """Print a line a notebook; return 1 where one of them fails."""
    failed = 0
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(
                notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources={"metadata": {"path": folder}}
            )
            try:
                client.execute()
                verdict = "ran"
            except CellExecutionError as error:
                failed += 1
                verdict = f"FAILED: {error.ename}: {error.evalue}\n{error.traceback}"
        print(f"{path.name}: {verdict} ({time.perf_counter() - start:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Build the documentation site: ``python docs/site/build.py [FOLDER]`` or ``make site``; a warning is an error.

The pages of docs/ are taken as they stand; those of measures, methods, the API and the gallery are made here, from the
code, and are not committed. The gallery's pictures are drawn by the code that stands beside them.
"""

import argparse
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def main() -> int:
    """Lay out the sources and build them; return Sphinx's exit code."""
    sys.path.insert(0, str(HERE))
    from layout import lay_out

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "site")
    folder = parser.parse_args().folder.resolve()
    sources, html = folder / "sources", folder / "html"
    for old in (sources, html):
        shutil.rmtree(old, ignore_errors=True)
    lay_out(sources)
    # -n is not given: types in signatures are no links. -W: a warning is an error, all of them shown.
    code = build_main(
        ["-q", "-W", "--keep-going", "-E", "-c", str(HERE), "-d", str(folder / "doctrees"), str(sources), str(html)]
    )
    if code == 0:
        print(f"{html / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())

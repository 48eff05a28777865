"""``python -m deltaw.cli`` is ``deltaw``."""

import sys

from deltaw.cli import main

if __name__ == "__main__":
    sys.exit(main())

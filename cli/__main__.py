"""``python -m deltaw.cli`` is ``deltaw``."""

import sys

from deltaw.cli import main

sys.exit(main())

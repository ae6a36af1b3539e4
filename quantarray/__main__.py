"""``python -m quantarray`` is the command ``quantarray``."""

import sys

from quantarray.cli import main

sys.exit(main())

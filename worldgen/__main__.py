"""`python -m worldgen`, the same as the command `worldgen`."""

import sys

from worldgen.cli import main

sys.exit(main())

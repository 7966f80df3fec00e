"""`python -m xent` is the command `xent`."""

import sys

from xent.cli import main

sys.exit(main())

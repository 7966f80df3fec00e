"""`python -m xent` is the command `xent`."""

import sys

from xent.command.cli import main

sys.exit(main())

"""`python -m tuneval`."""

import sys

from tuneval.cli import main

sys.exit(main())

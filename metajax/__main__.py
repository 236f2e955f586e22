"""`python -m metajax` is the `metajax` command."""

import sys

from metajax.cli.app import main

sys.exit(main())

"""`python -m spliteasy_cli`: the same as the `spliteasy` command."""

import sys

from spliteasy_cli import main

sys.exit(main())

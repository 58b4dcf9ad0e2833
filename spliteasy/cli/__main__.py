"""`python -m spliteasy.cli`: the same as the `spliteasy` command."""

import sys

from spliteasy.cli import main

sys.exit(main())

"""The web page of `spliteasy dashboard`: an aiohttp server that knows nothing of broker and store.

It shows what `Feed` is given, and lets an operator with a token do what `Operator` can. The page is plain
HTML, CSS and JavaScript in `static/`; it loads nothing from elsewhere.
"""

from spliteasy_cli.dashboard.feed import Feed
from spliteasy_cli.dashboard.guard import Guard, read_token
from spliteasy_cli.dashboard.server import Operator, serve

__all__ = ["Feed", "Guard", "Operator", "read_token", "serve"]

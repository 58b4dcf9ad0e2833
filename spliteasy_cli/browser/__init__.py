"""Training in a browser: the page, the links to it, and everything embedded behind it."""

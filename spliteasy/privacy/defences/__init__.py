"""Changes that a device makes to values before they leave it, so that less can be computed from them."""

"""What a device does to values before they leave it, so that less can be computed from them."""

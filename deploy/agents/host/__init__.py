"""What runs on a device: sent there over ssh as one zip file, with nothing but Python's standard library."""

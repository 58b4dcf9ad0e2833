"""A device's part in the rounds of its fleet."""

"""The device owner's rules: when to train, and how many bytes a day."""

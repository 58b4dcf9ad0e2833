"""The local stack: its folder, its services and its workers."""

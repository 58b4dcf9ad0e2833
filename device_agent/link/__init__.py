"""The connection to the broker, its speed, and the limit on uploads."""

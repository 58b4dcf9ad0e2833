"""The protocol of a session on a worker, as a state machine without I/O."""

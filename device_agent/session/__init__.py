"""The protocol of a device's session, as a state machine without I/O."""

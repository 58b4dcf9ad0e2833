"""Training one segment: forward, backward, optimizer, schedule, losses, and the plain program to equal."""

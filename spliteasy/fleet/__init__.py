"""One model from many devices: what is averaged at the end of a round, and the plain program to equal."""

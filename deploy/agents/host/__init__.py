"""The program that runs on a device. It is sent there over ssh as one zip file and needs nothing but Python's
standard library."""

"""The base of every process: files, threads, generators of random numbers, the event loop."""

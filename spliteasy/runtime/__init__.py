"""What every process of ours stands on: files, threads, generators of random numbers, the event loop."""

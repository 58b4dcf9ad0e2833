"""What all benchmarks share: a cluster of real parts, workloads, timed runs, tables and pictures."""

"""The harness of all benchmarks: a cluster of real parts, workloads, timed runs, tables and pictures."""

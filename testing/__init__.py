"""The harness that this project's tests use, for tests of jobs of your own (docs/testing.md).

`serving` runs a broker, a store and workers; `Cluster.train` runs a device; `assert_parity` compares the bits
with plain PyTorch.
"""

from testing.cluster import Cluster, serving
from testing.equality import assert_parity

__all__ = ["Cluster", "assert_parity", "serving"]

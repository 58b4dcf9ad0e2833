"""The limits of a portable graph: ten times what the largest networks that were tried need."""

from __future__ import annotations

GRAPH_BYTES = 8 << 20
"""JSON of one segment, both modes."""
NODES = 20_000
TENSORS = 20_000
VALUES = 4_096
"""Inputs or outputs of one graph."""
NESTING = 4
"""Lists within an argument."""
LIST_ITEMS = 4_096
TEXT = 256
"""Characters of a name or of a text argument."""
DIMENSIONS = 16
INTEGER = 1 << 53
"""JavaScript's exact range."""
ELEMENTS = 1 << 29
"""Elements of any one value, intermediate ones included, at a batch of two samples."""
BATCH_ELEMENTS = 1 << 31
"""The same at the batch sizes of the job."""
PIECES = 4_096
"""Outputs of one operator: `unbind` of a long tensor makes as many."""
SEQUENCE = 16_384
"""Steps of a recurrent operator."""
ORDER = 4_096
"""Rows and columns of a matrix that is inverted or taken apart: the work grows with their cube."""

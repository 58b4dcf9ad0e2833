"""A flat tensor's elements as signed integers of the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_INTS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def words_of(flat: Tensor) -> NDArray[np.signedinteger[Any]]:
    """Return a view; numpy has no bfloat16, so this is also how one gets there."""
    return flat.view(_INTS[flat.dtype.itemsize]).numpy()

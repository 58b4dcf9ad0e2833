"""Run by `test_travel`: load segments from a folder, train them, and write what came of it. Usage: FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from spliteasy import Split, load_segment
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from tests.splitting.parity import train_split


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    head, body, tail = (
        load_segment(
            (folder / f"{name}.json").read_bytes(),
            tensors_from_bytes((folder / f"{name}.safetensors").read_bytes()),
        )
        for name in ("head", "body", "tail")
    )
    batches = tensors_from_bytes((folder / "batches.safetensors").read_bytes())
    seen = train_split(Split(head, body, tail, (), ()), [(batches[name],) for name in sorted(batches)])
    (folder / "seen.safetensors").write_bytes(tensors_to_bytes(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

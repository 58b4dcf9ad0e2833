"""Test vectors of the wire and of every random draw, for agents written in another language.

`python -m tests.vectors` writes the JSON files of this folder; `test_vectors.py` holds the code against
them, so that a change of Python that changes a byte is noticed. `broker/protocol/WIRE.md` explains them.
"""

"""Graphs that travel: JSON over an allow-list of operators, tensors in safetensors, no code.

`graph` says what a portable graph is, `codec` reads and writes it, `check` refuses what it must,
`program` runs it.
"""

"""`python -m tests.vectors` writes the vectors; a change of them is a change of the protocol."""

from tests.vectors.book import FOLDER, written

for name, text in written().items():
    (FOLDER / name).write_text(text)
    print(f"{name}: {len(text)} bytes")

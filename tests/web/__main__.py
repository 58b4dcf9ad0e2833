"""`python -m tests.web` writes the vectors of the browser's engine, as PyTorch computes them here."""

from tests.web.book import FOLDER, written

for name, text in written().items():
    (FOLDER / name).write_text(text)
    print(f"{name}: {len(text)} bytes")

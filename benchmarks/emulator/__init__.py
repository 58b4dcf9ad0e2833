"""An emulated link: a TCP proxy with rate, latency, jitter, stalls and cuts.

In process: `async with LinkEmulator(("127.0.0.1", 5672), PROFILES["lte"]) as link: ... link.cut()`.
As a process of its own: `python -m benchmarks.emulator --profile lte --to 127.0.0.1:5672`, commanded by
lines on its standard input or a control socket (`control`).
"""

from benchmarks.emulator.connection import Traffic
from benchmarks.emulator.line import Direction
from benchmarks.emulator.link import LinkEmulator
from benchmarks.emulator.profiles import PROFILES, Outage, Profile

__all__ = ["PROFILES", "Direction", "LinkEmulator", "Outage", "Profile", "Traffic"]

"""Codecs pack tensors for the wire. They are pure functions without I/O.

`parse_codec("int8")` gives a `Codec`; `encode` turns a tensor into parts (tensors) and meta (a few JSON
values), `decode` is a pure function of these and of the shape and dtype that the receiver expects.
`docs/codecs.md` says what each codec does to the numbers.
"""

from spliteasy.codecs.choice import choose_codec
from spliteasy.codecs.codec import Codec, Encoded, Meta
from spliteasy.codecs.registry import codec_names, parse_codec

__all__ = ["Codec", "Encoded", "Meta", "choose_codec", "codec_names", "parse_codec"]

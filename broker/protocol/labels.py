"""The labels of a message in metrics."""

from __future__ import annotations

from broker.protocol import messages as m
from spliteasy.codecs.registry import codec_names

_NAMES = frozenset(name.partition(":")[0] for name in codec_names())


def codec_label(message: m.Message) -> str:
    """The codec's name without its ratio, `none` where the message carries no values of a cut.

    Names that no codec has are all `other`: a device must not be able to make labels up.
    """
    if not isinstance(message, m.Carrier):
        return "none"
    name = message.codec.partition(":")[0]
    return name if name in _NAMES else "other"

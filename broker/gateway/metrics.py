"""The metrics of a gateway."""

from __future__ import annotations

from spliteasy.observability.meter import Metric

CONNECTIONS = Metric(
    "spliteasy_gateway_connections",
    "gauge",
    "Connections open now: of devices, and of strangers that have not named an account yet.",
    ("who",),
)
ACCEPTED = Metric("spliteasy_gateway_accepted_total", "counter", "Devices that the broker has authenticated.")
REFUSED = Metric(
    "spliteasy_gateway_refused_total", "counter", "Connections that were turned away or cut off.", ("why",)
)
FRAMES = Metric(
    "spliteasy_gateway_frames_total",
    "counter",
    "Frames passed on: up, confirmed; down, sent.",
    ("direction",),
)
BYTES = Metric("spliteasy_gateway_bytes_total", "counter", "Bytes of those frames.", ("direction",))
PUBLISH_SECONDS = Metric(
    "spliteasy_gateway_publish_seconds", "histogram", "A frame's way to the broker's confirm."
)
IN_FLIGHT_BYTES = Metric(
    "spliteasy_gateway_in_flight_bytes", "gauge", "Bytes of frames that wait for the broker's confirm."
)
HELD_BYTES = Metric(
    "spliteasy_gateway_held_bytes", "gauge", "Bytes of deliveries that wait for their readers."
)

ALL = (CONNECTIONS, ACCEPTED, REFUSED, FRAMES, BYTES, PUBLISH_SECONDS, IN_FLIGHT_BYTES, HELD_BYTES)

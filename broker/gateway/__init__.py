"""The gateway: devices that can't speak AMQP, such as pages of a browser, reach the broker by a WebSocket."""

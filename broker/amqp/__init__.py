"""The transport over RabbitMQ, the only part that knows aiormq."""

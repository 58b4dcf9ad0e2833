"""RabbitMQ and Redis servers of one's own, with their users and certificates."""

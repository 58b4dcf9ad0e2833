"""RabbitMQ and Redis servers that this project starts itself, with their users and certificates."""

"""A hostile device with valid credentials, and an outsider, against real brokers, workers and agents."""

"""Real processes under real faults: RabbitMQ, Redis, workers, agents, links; the end is the same bits."""

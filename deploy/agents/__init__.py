"""Put agents on devices over ssh: `make deploy-agents`, `python -m deploy.agents --help`."""

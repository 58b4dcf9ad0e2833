"""A hostile device with valid credentials, and an outsider, against a real broker and an enrolled worker."""

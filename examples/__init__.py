"""Examples: jobs that run as they are, and that may be copied."""

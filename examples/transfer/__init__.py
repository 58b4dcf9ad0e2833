"""A frozen base of a vision model, trained elsewhere before, that phones adapt to pictures of their own."""

"""Small models, one per thing that can go wrong when a model is cut."""

"""The proof that a trace computes what the model computes, outputs and gradients alike."""

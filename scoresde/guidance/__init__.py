"""Models that are steered: what is sampled changes, a function from model to model."""

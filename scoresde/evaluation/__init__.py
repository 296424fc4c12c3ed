"""How good a model is, as one report."""

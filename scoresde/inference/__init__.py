"""Posteriors p(theta | x) from simulated pairs: simulation-based inference."""

"""Gaussian paths from data to noise, what a network may predict of them, and where steps lie."""

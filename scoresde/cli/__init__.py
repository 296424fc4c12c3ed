"""The command `scoresde`."""

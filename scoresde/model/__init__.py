"""The trained object: a process, a network, and the standardization of the data."""

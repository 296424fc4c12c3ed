"""Records on disk, and models saved as records."""

"""What `fit` does: objectives, couplings, the trainer, checkpoints, averages."""

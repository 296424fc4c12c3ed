"""Models of others and for others: the Hugging Face hub, model cards, checkpoints of diffusers."""

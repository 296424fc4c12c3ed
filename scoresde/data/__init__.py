"""What `fit` and `evaluate` read: tensors, tables, files, datasets, pairs."""

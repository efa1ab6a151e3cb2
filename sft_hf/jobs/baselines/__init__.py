"""Baselines without fine-tuning, scored on the same rows as the model; see `compare`."""

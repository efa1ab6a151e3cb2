"""Checkpoints in other formats than Transformers'."""

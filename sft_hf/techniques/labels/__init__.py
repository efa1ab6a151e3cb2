"""Techniques for noisy and imbalanced labels."""

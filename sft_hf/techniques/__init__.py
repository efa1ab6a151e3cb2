"""Techniques that modify training, for every task: one file each, found by its name."""

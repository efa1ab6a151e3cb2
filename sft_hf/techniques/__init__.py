"""Techniques that modify training, for every task: one file each, loaded by name."""

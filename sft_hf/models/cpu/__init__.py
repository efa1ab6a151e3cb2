"""Faster operations for training on CPUs."""

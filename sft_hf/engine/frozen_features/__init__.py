"""Compute the frozen lower part of a model once per row, and reuse it."""

"""Compute the output of a model's frozen lower part once per row, and reuse it."""

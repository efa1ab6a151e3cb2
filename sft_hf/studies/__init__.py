"""Checks that run a recipe: `check` and `verify-resume`."""

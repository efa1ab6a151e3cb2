"""Shared foundations: recipes, run folders, sources, errors, file access, console output."""

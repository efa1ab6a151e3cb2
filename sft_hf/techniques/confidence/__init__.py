"""Techniques that calibrate or withhold answers."""

"""Techniques that calibrate confidence or abstain from answers."""

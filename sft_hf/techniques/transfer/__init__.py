"""Techniques that preserve pretrained features."""

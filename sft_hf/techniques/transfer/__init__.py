"""Techniques that keep what the pretrained model knows."""

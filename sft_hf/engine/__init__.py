"""The training and evaluation loops and what they are built from."""

"""The training and evaluation loops and their components."""

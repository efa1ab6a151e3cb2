"""What makes several runs of one recipe."""

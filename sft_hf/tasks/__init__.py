"""One folder per application scenario."""

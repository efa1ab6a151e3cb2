"""One run from start to end: train, score, write, open again."""

"""Training jobs: train, score and write a run, and use finished runs."""

"""Studies that run a recipe several times."""

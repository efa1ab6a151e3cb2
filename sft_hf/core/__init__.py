"""What every other folder may use: recipes, run folders, sources, errors, files, the console."""

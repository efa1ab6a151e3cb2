"""What `predict` is given: texts, files, folders, tables."""

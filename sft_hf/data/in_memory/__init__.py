"""Data in memory: DataFrames, Arrow tables, lists of dicts, images and recordings as arrays."""

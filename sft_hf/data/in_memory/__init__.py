"""Data that a program holds in memory: DataFrames, Arrow tables, lists of dicts, pictures and recordings as arrays."""

"""Reading data sets, splitting them, and caching prepared rows."""

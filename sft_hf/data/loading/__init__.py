"""Load a path, a folder or a Hub id as splits of rows."""

"""From a path, a folder or a Hub id to splits of rows."""

"""Labels and regression targets: reading cells, naming classes, numbering rows."""

"""Labels and regression targets: parsing cells, naming classes, encoding labels."""

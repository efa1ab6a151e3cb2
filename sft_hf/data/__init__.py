"""Reading data sets, splitting them, and laying out the order of batches."""

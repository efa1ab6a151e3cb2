"""One file per application scenario; the file's name is the task's name in a recipe."""

"""The model card: README.md of a model, with metadata and Markdown."""

"""The model card: README.md of a model, front matter and Markdown."""

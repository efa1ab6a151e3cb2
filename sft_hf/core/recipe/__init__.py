"""Recipes: YAML in, validated settings out."""

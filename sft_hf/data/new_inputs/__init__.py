"""Inputs of `predict`: texts, files, folders, tables."""

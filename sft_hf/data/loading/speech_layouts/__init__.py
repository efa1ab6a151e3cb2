"""Layouts of published speech corpora, and transcripts with times."""

"""Layouts in which corpora of speech are shipped, and transcripts with times."""

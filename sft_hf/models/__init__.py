"""Opening checkpoints, of whatever format, as Transformers models."""

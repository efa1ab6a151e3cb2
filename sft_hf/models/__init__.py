"""Loading pretrained models of all supported formats as Transformers models."""

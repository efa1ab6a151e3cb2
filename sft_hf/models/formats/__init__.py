"""Pretrained models in formats other than Transformers'."""

"""Where models and data come from: the Hub, local files, and Python packages."""

from sft_hf.core.sources.sources import Source, resolve, resolve_section

__all__ = ["Source", "resolve", "resolve_section"]

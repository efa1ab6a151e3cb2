"""Sphinx configuration; `scripts/docs` builds the site, with every warning as an error."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import sft_hf  # noqa: E402

project = "sft-hf"
author = "The sft-hf authors"
copyright = "2026, the sft-hf authors"
version = release = sft_hf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated_pages"]
exclude_patterns = ["_build"]
suppress_warnings = ["misc.highlighting_failure"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

smartquotes = False  # they would turn --option into a dash

html_theme = "furo"
html_title = f"sft-hf {version}"
html_show_sourcelink = False
html_copy_source = False

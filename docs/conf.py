"""Sphinx: `make docs` builds the pages of this folder and the reference of the public names."""

from __future__ import annotations

from fxquant import __version__

project = "fxquant"
author = "the fxquant engineers"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"fxquant {__version__}"
html_static_path = ["_static"]
templates_path = ["_templates"]
exclude_patterns = ["out"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
default_role = "literal"
autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of dataclasses are described once, where the class is

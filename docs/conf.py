"""The site of the documentation: `scripts/docs` builds it."""

import importlib.metadata

project = "dlshap"
release = importlib.metadata.version("dlshap")
author = copyright = "dlshap contributors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3  # links lead to headings, as where a page is read without the site
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "code"  # of single backticks in docstrings
nitpicky = False  # types of torch and numpy have no page here

html_theme = "furo"
html_title = f"dlshap {release}"
html_copy_source = False
# MathJax lies in the site, so that formulas are shown without a network, and no other host hears who reads a page.
mathjax = importlib.metadata.distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax")
html_static_path = ["_static", f"{mathjax}/tex-svg.js"]
mathjax_path = "tex-svg.js"
html_css_files = ["phone.css", "dark.css"]

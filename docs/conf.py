"""Settings of Sphinx."""

project = "trio_daq"
author = "The trio_daq founders"
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
exclude_patterns = ["_build"]

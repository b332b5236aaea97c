"""The documentation as a site: `make docs` builds it into site/, and nothing is fetched when it is read."""

project = "modicum"
copyright = "Apache-2.0"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "modicum"
html_copy_source = html_show_sphinx = False
# Links like those of a page in a repository: to headings by their words.
myst_heading_anchors = 4
exclude_patterns = ["gallery"]
nitpicky = True

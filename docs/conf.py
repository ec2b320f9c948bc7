"""Settings of the course site; `make site` builds it (notebooks/tools/site/ says how)."""

from __future__ import annotations

from notebooks.tools import address
from notebooks.tools.site.mathml import NAME
from notebooks.tools.site.sources import BRANCH, repository_address

project = "The IOI circuit, hands on"
language = "en"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "notebooks.tools.site.extension",
]

# Notebooks are shown as they are.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
# A name between backticks may be that of several things; then it is no link.
suppress_warnings = ["myst.header", "ref.python"]

napoleon_use_ivar = True
napoleon_attr_annotations = False  # shapes are not RST
napoleon_custom_sections = [("What a dataset holds", "params_style")]
# Docstrings put names between single backticks.
default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

# Nothing of a page comes from the network.
html_math_renderer = NAME
html_theme = "sphinx_book_theme"
html_title = project
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the side bar has the search
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "extra_footer": "Code: MIT. Text and figures: CC BY 4.0.",
}
if address.is_set():  # until then they would lead nowhere
    html_theme_options |= {
        "repository_url": repository_address(),
        "repository_branch": BRANCH,
        "path_to_docs": "",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }

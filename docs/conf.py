"""How the documentation is built; see CONTRIBUTING.md for the command."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

from metajax._version import __version__

project = "metajax"
author = "The metajax authors"
copyright = author
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
    "api_pages",
    "mathml",
]
exclude_patterns = ["extensions"]
default_role = "py:obj"  # docstrings name what they speak of in single backticks
nitpicky = True
# Names of this package have to exist; those of others are printed as they are, as that needs no
# network.
nitpick_ignore_regex = [(r"py:.*", r"(?s)(?!metajax\b).*")]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
add_module_names = False

nb_execution_mode = "off"  # notebooks are kept with their outputs, and the tests run them
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = f"metajax {release}"
html_theme_options = {"top_of_page_buttons": []}
html_static_path = ["static"]
html_css_files = ["metajax.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

"""Sphinx's settings. The sources are those that build.py lays out, not docs/ itself."""

from importlib.metadata import version as installed

project = "deltaw"
author = "the deltaw authors"
project_copyright = "the deltaw authors"
version = release = installed("deltaw")

extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4  # GitHub's, so that one link serves there and here
source_suffix = {".md": "markdown"}
exclude_patterns: list[str] = []
highlight_language = "text"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "deltaw"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0B5D8F", "color-brand-content": "#0B5D8F"},
    "dark_css_variables": {"color-brand-primary": "#6CB6E8", "color-brand-content": "#6CB6E8"},
}
html_static_path = ["static"]
html_css_files = ["site.css"]

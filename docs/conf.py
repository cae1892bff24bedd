"""Configuration of the documentation; `make docs` builds it with warnings as errors, and without a network."""

from __future__ import annotations

import inspect
import os
from importlib.metadata import version as package_version

from sphinx.ext.napoleon.docstring import NumpyDocstring

project = "scvi_causal"
author = "scvi_causal developers"
project_copyright = f"2026, {author}"
version = release = package_version("scvi-causal")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "tutorials/README.md", "**.ipynb_checkpoints", "Thumbs.db", ".DS_Store"]
templates_path = ["_templates"]

# notebooks are executed before they are committed, never while the documentation is built
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = True
napoleon_custom_sections = ["Source"]

html_theme = "sphinx_book_theme"
html_title = "scvi_causal"
html_static_path = ["_static"]
html_show_sourcelink = False

# Links into other projects need the network: they are made where the pages are published, and so is the check that
# every reference resolves.
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/pandas-docs/stable", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/main", None),
    }


def _skip_foreign_members(app, what, name, obj, skip, options):
    """Document what this package defines; what a class inherits from scvi-tools, torch or lightning has its own pages."""
    member = getattr(obj, "fget", None) or getattr(obj, "__func__", None) or obj
    if inspect.isroutine(member) and not str(getattr(member, "__module__", None)).startswith("scvi_causal"):
        return True
    return skip


def _parse_returns_section(self, section):
    """Read "Returns" as the sentence that it is here; napoleon would take what stands before a colon for a name."""
    lines = self._dedent(self._consume_to_next_section())
    return [":returns:", "", *self._indent(lines, 3), ""]


def _parse_attribute_docstring(self):
    """Likewise for what stands below an attribute: it has an annotation, and its text is a sentence."""
    return self._consume_to_end()


def setup(app):
    """Connect the functions above."""
    NumpyDocstring._parse_returns_section = _parse_returns_section
    NumpyDocstring._parse_attribute_docstring = _parse_attribute_docstring
    app.connect("autodoc-skip-member", _skip_foreign_members)

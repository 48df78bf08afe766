"""How these pages become a site.

    sphinx-build -W --keep-going docs build/site

The pages are plain Markdown that reads well on a forge too. So a link to another page is a relative path, and so is one
to a file or a folder of the repository, `../examples/digits.py` say. Such a path leads nowhere on the site, so there it
becomes the address of the file in the repository, if pyproject.toml names one as `Source` in `[project.urls]`. As long
as it does not, the site offers the file for download, and of a link to a folder the text remains. What the site shows
itself is linked there.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

import batchify
import batchify.testing

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SHOWN = {"README.md": "/index", "CHANGELOG.md": "/changes"}
about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = about.get("urls", {}).get("Source", "").rstrip("/")

project = "batchify"
author = about["authors"][0]["name"]
copyright = author
release = version = about["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # as a forge makes them, so that `page.md#some-heading` works in both places

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"batchify {release}"
html_copy_source = html_show_sourcelink = html_use_index = html_domain_indices = False
toc_object_entries_show_parents = "hide"

# References to what is public here must lead somewhere. The site is built without a network, so those to Python's own
# library are text, as are the names of private types.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!batchify\.[^_]).*")]

default_role = "name"
add_module_names = False
python_use_unqualified_type_names = python_display_short_literal_types = True
python_maximum_signature_line_length = 88
napoleon_use_rtype = False
napoleon_use_ivar = False

# What users know by these names is defined in files that they need not know.
for public in batchify.__all__:
    getattr(batchify, public).__module__ = "batchify"


def name(role: str, rawtext: str, text: str, *_: Any, **__: Any) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """Show what stands in backticks in a docstring as code, and let a public class lead to its place."""
    code = nodes.literal(rawtext, text, classes=["py"])
    if text.partition(".")[0] not in batchify.__all__ or not re.fullmatch(r"[A-Z][\w.]*", text):
        return [code], []
    reference = addnodes.pending_xref(rawtext, code, refdomain="py", reftype="obj", reftarget=f"batchify.{text}")
    return [reference], []


def mend_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, arguments: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Show how a class is called only where users call it, as most are made by the library; and mend Sphinx's types."""
    if arguments is None:
        return None
    if what == "exception" or (what == "class" and not name.endswith(("BatchProcessor", "Observer"))):
        return "", None
    return arguments.replace("[[...], ", "[..., "), returns


def mend_attributes(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Show the type of an attribute beside its name, and without modules: napoleon has it below, as a field."""
    field = re.compile(
        r"^(\.\. attribute:: \w+\n)((?:(?!\.\. attribute::).)*?)\n+ +(:type: [^\n]+)$", re.DOTALL | re.MULTILINE
    )
    module = re.compile(r"(?<![\w.])(?!batchify\.[^_])(?:[a-z_]+\.)+(?=[A-Z])")
    text = field.sub(lambda found: f"{found[1]}   {module.sub('', found[3])}\n{found[2]}", "\n".join(lines))
    lines[:] = text.split("\n")


def leave_the_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Let links to files and folders of the repository lead there: see the top of this file."""
    for node in [*doctree.findall(addnodes.pending_xref), *doctree.findall(addnodes.download_reference)]:
        target, is_page = node["reftarget"], node.get("refdomain") == "doc"
        file = (DOCS / (f"{target}.md" if is_page else target)).resolve()
        if not (is_page or target.startswith("../")) or file.is_relative_to(DOCS) or not file.exists():
            continue  # and if it leads nowhere, the build fails
        path = str(file.relative_to(ROOT))
        if path in SHOWN:
            there = addnodes.pending_xref(refdomain="std", reftype="doc", reftarget=SHOWN[path], refexplicit=True)
        elif REPOSITORY:
            there = nodes.reference(refuri=f"{REPOSITORY}/{'tree' if file.is_dir() else 'blob'}/main/{path}")
        elif file.is_dir():
            there = nodes.inline()
        else:
            there = addnodes.download_reference(reftarget=f"../{path}")
        there += node.children
        node.replace_self(there)


def setup(app: Sphinx) -> None:
    """Tell Sphinx of the above."""
    app.add_role("name", name)
    app.connect("autodoc-process-signature", mend_signature)
    app.connect("autodoc-process-docstring", mend_attributes, priority=900)  # when napoleon has been there
    app.connect("doctree-read", leave_the_pages, priority=100)  # before files to download are collected

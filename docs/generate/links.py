"""Links that work in the repository, as the site has them."""

import posixpath
import re

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")
PLACES = {
    r"README\.md": "index.md",
    r"samples/(\w+)\.ipynb": r"notebooks/\1.md",
    r"onnxdfq/targets": "targets/index.md",
    r"onnxdfq/targets/(\w+)\.toml": r"targets/\1.md",
    r"docs/methods": "methods/index.md",
    r"onnxdfq/methods/method\.py": "api/methods.md",
    r"onnxdfq/api": "api/functions.md",
}
"""What lies in the repository → the page that is generated of it."""


def links_of_the_site(text: str, folder: str) -> str:
    """A page whose relative links are those of the site.

    Args:
        text: with links from the folder to what lies in the repository.
        folder: in which the page lies, from the repository's root: "" or "docs/how-to".
    """
    here = posixpath.relpath(folder, "docs") if folder else "."
    return LINK.sub(lambda found: f"]({posixpath.relpath(_page(found[1], folder), here)}", text)


def _page(link: str, folder: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, link))
    for place, page in PLACES.items():
        if found := re.fullmatch(place, path):
            return found.expand(page)
    return posixpath.relpath(path, "docs")

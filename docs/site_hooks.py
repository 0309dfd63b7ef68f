"""Hooks of the documentation site: pages from other folders of the repository, and links that hold in both places.

The files link to each other as they are in the repository. On the site, README.md is the start page, and
CONTRIBUTING.md, CHANGELOG.md and the README of each recipe are pages, too. A link to any other file of the repository
becomes plain text, because the site does not hold that file.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs"
# File of the repository outside docs/ -> page of the site.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"} | {
    path.relative_to(ROOT).as_posix(): f"recipes/{path.parent.name}.md"
    for path in sorted((ROOT / "examples").glob("*/README.md"))
}
SOURCES = {page: source for source, page in PAGES.items()}
# An inline link or picture: the text with its brackets, the target, and the anchor with its number sign.
LINK = re.compile(r"(!?\[[^\]]*\])\(([^()\s#:]+)(#[^()\s]*)?\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of `PAGES` (called by mkdocs)."""
    # Tests use this module without mkdocs.
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page (called by mkdocs)."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, page: str) -> str:
    """The text of a page with links of the repository turned into links of the site.

    Args:
        markdown: the text; code blocks are left as they are.
        page: its place below docs/, such as `recipes/mla.md`.
    """
    folder = posixpath.dirname(SOURCES.get(page, f"{DOCS}/{page}"))

    def rewrite(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        place = site_page(path)
        if place is not None:
            return f"{text}({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"
        return text[1:-1] if (ROOT / path).exists() else match[0]

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(rewrite, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(rewrite, markdown[end:])])


def site_page(path: str) -> str | None:
    """Where the site has a file or folder of the repository, below its root; None if it does not."""
    if path in PAGES or f"{path}/README.md" in PAGES:
        return PAGES.get(path) or PAGES[f"{path}/README.md"]
    inside = path.startswith(f"{DOCS}/") and (ROOT / path).is_file()
    return path.removeprefix(f"{DOCS}/") if inside else None

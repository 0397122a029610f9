"""MkDocs hook: files of the repository outside docs/ that are pages of the site too.

They stay where people look for them in a checkout; links to them, and in them, are rewritten.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# The file in the repository, the page in the site.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/celery_worker.py": "examples/celery_worker.md",
}
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each of the files as a page."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        text = (root / source).read_text(encoding="utf-8")
        if not source.endswith(".md"):
            text = f"# {source}\n\n```{Path(source).suffix[1:]}\n{text}```\n"
        files.append(File.generated(config, page, content=rewritten(text, source, page)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let a page of docs/ that links to one of the files reach its page."""
    here = page.file.src_uri
    return markdown if here in PAGES.values() else rewritten(markdown, f"docs/{here}", here)


def rewritten(text: str, source: str, page: str) -> str:
    """Return `text` with the relative links of `source` made to hold at `page`."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        # A path that is neither a page nor in docs/ stays as it is, and the strict build names it.
        if target in PAGES or target.startswith("docs/"):
            to = PAGES.get(target, target.removeprefix("docs/"))
            return posixpath.relpath(to, posixpath.dirname(page) or ".") + (found[2] or "")
        return found[0]

    return LINK.sub(link, text)

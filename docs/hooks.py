"""Makes README.md and benchmarks/RESULTS.md pages of the documentation."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": ROOT / "README.md", "results.md": ROOT / "benchmarks" / "RESULTS.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Returns the files with those pages."""
    for name, path in PAGES.items():
        files.append(File.generated(config, name, content=path.read_text()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Returns a page with its links as they are inside the documentation."""
    results = markdown.replace("../benchmarks/RESULTS.md", "results.md")
    results = results.replace("benchmarks/RESULTS.md", "results.md")
    return results.replace("](../docs/", "](").replace("](docs/", "](")

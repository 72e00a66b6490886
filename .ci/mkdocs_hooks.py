"""MkDocs hooks for links from pages to files outside docs/.

Pages link to files in the repository by relative paths, which also work in a
checkout. These hooks copy linked images to the site, and point other links to
the repository.
"""

import pathlib
import re

from mkdocs.structure.files import File

# A link to a file, not to a URL or a heading.
LINK = re.compile(
    r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)"
)
# Pages of the site that are files in the root of the repository.
ROOT_PAGES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
_pictures = {}


def on_files(files, config):
    """Add pages from the root of the repository, and images outside docs/."""
    root = pathlib.Path(config.docs_dir).parent
    for uri, name in ROOT_PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        # Make links relative to docs/, where the site expects the page.
        text = LINK.sub(r"\1[\2](../\3\4)", text)
        files.append(File.generated(config, uri, content=text))
    _pictures.clear()
    for page in files.documentation_pages():
        for image, _, target, _ in LINK.findall(page.content_string):
            path = (root / "docs" / target).resolve()
            if image and target.startswith("../"):
                name = f"images/{path.parent.name}_{path.name}"
                _pictures[target] = name
                if files.get_file_from_path(name) is None:
                    files.append(
                        File.generated(config, name, abs_src_path=str(path))
                    )
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links to files outside docs/ to the site or the repository."""
    root = pathlib.Path(config.docs_dir).parent

    def replace(match):
        image, text, target, anchor = match.groups(default="")
        if not target.startswith("../"):
            return match[0]
        path = (root / "docs" / target).resolve()
        if not path.exists():
            # The strict build reports the broken link.
            return match[0]
        if image:
            target = _pictures[target]
        elif path.parent == root / "docs":
            target = path.name
        elif path.name in ROOT_PAGES.values():
            target = path.name.lower()
        else:
            kind = "tree" if path.is_dir() else "blob"
            relative = path.relative_to(root).as_posix()
            target = f"{config.repo_url.rstrip('/')}/{kind}/main/{relative}"
        return f"{image}[{text}]({target}{anchor})"

    return LINK.sub(replace, markdown)

"""Hooks of the documentation site: what pages link to outside of docs/.

Pages name files of the repository by relative paths, so that their links work
in a checkout too. Here pictures become part of the site, and other files a link
to the repository.
"""

import pathlib
import re

from mkdocs.structure.files import File

# The target of a link to a file, not to an address or a heading.
LINK = re.compile(
    r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)"
)
# Pages of the site that are files of the repository's root.
ROOT_PAGES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
_pictures = {}


def on_files(files, config):
    """Add the pages that lie at the root, and pictures of other folders."""
    root = pathlib.Path(config.docs_dir).parent
    for uri, name in ROOT_PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        # Links of a page in docs/ start there.
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
    """Let links that lead out of docs/ lead to the site or the repository."""
    root = pathlib.Path(config.docs_dir).parent

    def replace(match):
        image, text, target, anchor = match.groups(default="")
        if not target.startswith("../"):
            return match[0]
        path = (root / "docs" / target).resolve()
        if not path.exists():
            # Left as it is, which the strict build reports.
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

"""Lint prose with proselint and the vocabulary of this project.

Usage: python .ci/prose.py FILE.md...
"""

import pathlib
import re
import sys

from proselint.checks import __register__ as checks
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, types
from proselint.tools import LintFile

# Terms to avoid, and the preferred terms.
PREFERRED = {
    "re-estimate": "re-initialize by k-means",
    "re-estimated": "re-initialized by k-means",
    "re-estimating": "re-initializing by k-means",
    "the leak": "the speaker probe",
    "voices that were not trained on": "unseen speakers",
    "voices not trained on": "unseen speakers",
    "what a figure is worth": "the metric",
}
CHECKS = {
    "vocabulary": True,
    "cliches": True,
    "lexical_illusions": True,
    "malapropisms": True,
    "mondegreens": True,
    "needless_variants": True,
    "nonwords": True,
    "redundancy": True,
    "weasel_words": True,
}


def prose(text: str) -> str:
    """Replace front matter, code and link targets with spaces, so that the rest
    keeps its position."""

    def blank(match):
        return re.sub(r"[^\n]", " ", match[0])

    for pattern in (r"(?s)^---\n.*?^---$", r"(?s)```.*?```", r"`[^`\n]*`"):
        text = re.sub(pattern, blank, text, flags=re.MULTILINE)
    return re.sub(r"\]\([^)]*\)|<[^>]*>|https?://\S+", blank, text)


def main(paths: list[str]) -> int:
    """Print the errors, and return 1 if there are any."""
    vocabulary = Check(
        check_type=types.PreferredFormsSimple(items=PREFERRED),
        path="vocabulary.house",
        message="Use '{}' instead of '{}'.",
    )
    CheckRegistry().register_many((*checks, vocabulary))
    has_errors = False
    for path in map(pathlib.Path, paths):
        text = prose(path.read_text(encoding="utf-8"))
        config = {"max_errors": 100, "checks": CHECKS}
        for result in LintFile(path, text).lint(config):
            line, column = result.pos
            has_errors = True
            print(f"{path}:{line - 1}:{column}: {result.check_result.message}")
    return int(has_errors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

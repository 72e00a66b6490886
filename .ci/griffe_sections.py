"""Griffe extension that renames SpeechBrain's docstring sections to numpy's."""

import re

import griffe

HEADINGS = {"Arguments": "Parameters", "Example": "Examples"}


class SpeechBrainSections(griffe.Extension):
    """Rename section headings of docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rename the headings in an object's docstring."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        headings = dict(HEADINGS)
        # Named tuples have no constructor in the source: document their fields.
        if obj.is_class and "NamedTuple" in map(str, obj.bases):
            headings["Arguments"] = "Attributes"
        for ours, theirs in headings.items():
            text = re.sub(
                rf"^{ours}\n-+$",
                f"{theirs}\n{'-' * len(theirs)}",
                text,
                flags=re.MULTILINE,
            )
        obj.docstring.value = text

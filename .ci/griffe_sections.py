"""Extension of griffe: SpeechBrain's headings of docstrings become numpy's."""

import re

import griffe

HEADINGS = {"Arguments": "Parameters", "Example": "Examples"}


class SpeechBrainSections(griffe.Extension):
    """Rename the headings of docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rename those of an object."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        headings = dict(HEADINGS)
        # Its constructor is made at run time, so its arguments are fields.
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

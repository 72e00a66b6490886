"""What the loopback Hub makes of a model card's front matter."""

import re

import yaml

LICENSES = set(
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0"
    " cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0"
    " cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nc-nd-4.0 cc-by-nd-4.0 gpl gpl-2.0"
    " gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 mpl-2.0 isc unlicense wtfpl"
    " openrail unknown other".split()
)
# Of each key, what its value may be.
KINDS = {
    "license": str,
    "library_name": str,
    "pipeline_tag": str,
    "language": (str, list),
    "tags": list,
    "datasets": (str, list),
    "metrics": (str, list),
    "base_model": (str, list),
    "model-index": list,
}


def text_of(repo, commit):
    """The text of a commit's README.md, or nothing."""
    entry = commit.files.get("README.md")
    if entry is None:
        return ""
    return repo.blobs.read(entry.sha256).decode(errors="replace")


def raw(text):
    found = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*$", text, re.S | re.M)
    return None if found is None else yaml.safe_load(found.group(1))


def front_matter(text):
    """The front matter as a mapping, empty where it is none."""
    try:
        found = raw(text)
    except yaml.YAMLError:
        found = None
    # As the Hub sends it: in JSON, where a date is a string.
    return _plain(found) if isinstance(found, dict) else {}


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def check(text):
    """Check a card.

    Arguments
    ---------
    text : str
        The whole card.

    Returns
    -------
    tuple
        Errors and warnings, each a list of {"message": ...}.
    """
    try:
        found = raw(text)
    except yaml.YAMLError as problem:
        return _told([f"The metadata is not valid YAML: {problem}"]), []
    if found is None:
        return [], _told(["empty or missing yaml metadata in repo card"])
    if not isinstance(found, dict):
        return _told(["The metadata must be an object"]), []
    return _told(list(_errors(found))), []


def _told(messages):
    return [{"message": message} for message in messages]


def _errors(found):
    for key, kind in KINDS.items():
        if key in found and not isinstance(found[key], kind):
            yield f'"{key}" has the wrong type: {found[key]!r}'
    license_ = found.get("license")
    if isinstance(license_, str) and license_ not in LICENSES:
        yield f'"license" must be one of [{", ".join(sorted(LICENSES))}]'
    for entry in found.get("model-index") or ():
        if not isinstance(entry, dict) or not isinstance(
            entry.get("name"), str
        ):
            yield '"model-index[0].name" is required'
        elif not isinstance(entry.get("results"), list):
            yield '"model-index[0].results" is required'

"""Derive the yaml of a model from the yaml of its training."""

import pathlib
import pydoc

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.tag import Tag

from speechbrain_vq.hub.folder import HPARAMS
from speechbrain_vq.presets import TRAINER_OPTIONS
from speechbrain_vq.recipe_files import dump

# Keys of the section `inference` in a training yaml, and their defaults.
SECTION = {
    "interface": "VQTokenizer",
    "keys": ["sample_rate", "token_rate"],
    "files": [],
    "recipe": None,
    "summary": None,
    "card": {},
}
# SpeechBrain's own Pretrained.from_hparams requires it to find the weights.
PRETRAINER = """
pretrainer: !new:speechbrain_vq.hub.pretrainer.WeightsPretrainer
    modules: !ref <modules>
"""


def inference_section(training: dict) -> dict:
    """Return the section ``inference`` of a training yaml, with defaults for
    missing keys. Raises ValueError if it has an unknown key.

    Its keys are ``interface``, the class that loads the model (a name in
    ``speechbrain_vq.inference``, or a dotted name); ``keys``, keys of the yaml
    to export besides ``modules``; ``files`` of ``save_folder`` to export (only
    ``label_encoder.txt`` is supported); ``recipe`` and ``summary`` for the
    card; and ``card``, its front matter.

    Example
    -------
    >>> inference_section({})["interface"]
    'VQTokenizer'
    """
    section = training.get("inference") or {}
    unknown = set(section) - set(SECTION)
    if unknown:
        raise ValueError(
            f"inference: in the run's {HPARAMS} has unknown keys: "
            f"{', '.join(unknown)}. Its keys are {', '.join(SECTION)}."
        )
    return {**SECTION, **section}


def inference_yaml(training: CommentedMap, keys: list[str]) -> str:
    """Return the yaml of a model, with the modules and the given keys of its
    run's yaml. Raises ValueError if a key is missing, or a value is an absolute
    path."""
    names = [*keys, "modules"]
    missing = [key for key in names if key not in training]
    if missing:
        raise ValueError(
            f"The run's {HPARAMS} lacks {', '.join(missing)}, which the model "
            "needs."
        )
    copies: dict = {}
    selected = CommentedMap((k, _plain(training[k], k, copies)) for k in names)
    title = "# A pretrained model of speechbrain_vq\n\n"
    return title + dump(selected) + PRETRAINER


def _plain(node, name: str, copies: dict):
    """Copy a node without comments, anchors and reservoirs; keep aliases."""
    if id(node) in copies:
        return copies[id(node)]
    original, node = node, _resolve_preset(node)
    if isinstance(node, CommentedMap):
        copy = copies[id(original)] = CommentedMap()
        for key, value in node.items():
            path = f"{name}.{key}"
            value = 0 if key == "reservoir_size" else value
            copy[key] = _plain(value, path, copies)
    elif isinstance(node, CommentedSeq):
        copy = copies[id(node)] = CommentedSeq()
        copy.extend(_plain(value, name, copies) for value in node)
    else:
        if isinstance(node, str) and pathlib.PurePath(node).is_absolute():
            raise ValueError(
                f"{name} of the run's {HPARAMS} is {node}, a path that exists "
                "only on your machine."
            )
        return node
    if node.tag.value:
        copy.yaml_set_ctag(node.tag)
    return copy


def _resolve_preset(node):
    """Replace a call of ``from_preset`` with the class and its arguments."""
    tag = str(getattr(node, "tag", None) and node.tag.value)
    name = tag.removeprefix("!apply:").removesuffix(".from_preset")
    if not tag.startswith("!apply:") or not tag.endswith(".from_preset"):
        return node
    preset_arguments = pydoc.locate(name).preset_arguments
    if isinstance(node, CommentedMap):
        options = {k: v for k, v in node.items() if k not in TRAINER_OPTIONS}
        built = CommentedMap(preset_arguments(**options))
    else:
        built = CommentedMap(preset_arguments(*node))
    built.yaml_set_ctag(Tag(suffix=f"!new:{name}"))
    return built

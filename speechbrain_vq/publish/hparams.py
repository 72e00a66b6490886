"""Make the yaml of a model from the yaml of its training."""

import pathlib
import pydoc

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.tag import Tag

from speechbrain_vq.hub.folder import HPARAMS, LABELS
from speechbrain_vq.presets import TRAINER_OPTIONS
from speechbrain_vq.recipe_files import dump

# Keys of the section `inference` of a training yaml, and their defaults.
SECTION = {
    "interface": "VQTokenizer",
    "keys": ["sample_rate", "token_rate"],
    "files": [],
    "recipe": None,
    "summary": None,
    "card": {},
}
# With it, SpeechBrain's own Pretrained.from_hparams finds the weights.
PRETRAINER = """
pretrainer: !new:speechbrain_vq.hub.pretrainer.WeightsPretrainer
    modules: !ref <modules>
"""


def inference_section(training: dict) -> dict:
    """Read the section ``inference`` of a training yaml, completed by defaults;
    a ValueError tells if it has an unknown key or file.

    Its keys are ``interface``, the class that loads the model (of
    ``speechbrain_vq.inference``, or a dotted name); ``keys``, further keys of
    the yaml to export beside ``modules``; ``files``, files of its
    ``save_folder`` to export, such as ``label_encoder.txt``; ``recipe`` and
    ``summary``, for the card; ``card``, its front matter.

    Example
    -------
    >>> inference_section({})["interface"]
    'VQTokenizer'
    """
    given = training.get("inference") or {}
    unknown = set(given) - set(SECTION)
    if unknown:
        raise ValueError(
            f"inference: of the run's {HPARAMS} has {', '.join(unknown)}; it "
            f"takes {', '.join(SECTION)}."
        )
    for name in given.get("files") or ():
        if name != LABELS:
            raise ValueError(
                f"inference: files: {name} would not be fetched from the Hub, "
                f"only {LABELS} would."
            )
    return {**SECTION, **given}


def inference_yaml(training: CommentedMap, keys: list[str]) -> str:
    """Write the yaml of a model, its modules and the given keys, from that
    of its run. A ValueError tells if a key is missing, or a value is a
    placeholder or an absolute path."""
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
    """Copy without comments, anchors and reservoirs; aliases stay aliases."""
    if id(node) in copies:
        return copies[id(node)]
    original, node = node, _built(node)
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
        tag = getattr(node, "tag", None)
        if tag is not None and str(tag.value) == "!PLACEHOLDER":
            raise ValueError(f"{name} of the run's {HPARAMS} is a placeholder.")
        if isinstance(node, str) and pathlib.PurePath(node).is_absolute():
            raise ValueError(
                f"{name} of the run's {HPARAMS} is {node}, a path that others "
                "do not have."
            )
        return node
    if node.tag.value:
        copy.yaml_set_ctag(node.tag)
    return copy


def _built(node):
    """Replace a quantizer made from a preset by its class and arguments."""
    tag = str(getattr(node, "tag", None) and node.tag.value)
    name = tag.removeprefix("!apply:").removesuffix(".from_preset")
    if not tag.startswith("!apply:") or not tag.endswith(".from_preset"):
        return node
    arguments = pydoc.locate(name).preset_arguments
    if isinstance(node, CommentedMap):
        own = {k: v for k, v in node.items() if k not in TRAINER_OPTIONS}
        built = CommentedMap(arguments(**own))
    else:
        built = CommentedMap(arguments(*node))
    built.yaml_set_ctag(Tag(suffix=f"!new:{name}"))
    return built

"""Linear probes of speaker, gender and phone from units, latents and
codewords, by logistic regression."""

import collections
import random
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy, embedding_bag

from .intervals import estimate
from .metric import SHARE, Estimate, Metric, Quantity
from .phone_units import phones_of_frames
from .utterances import Utterance

# Maximum number of frames for the phone probe, per utterance and in total.
FRAMES_PER_UTTERANCE = 100
MAX_FRAMES = 10_000
# Manifest keys of the utterance labels.
_LABELS = {"speaker": "spk_id", "gender": "gender"}


def fit_probe(
    inputs: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Fit multinomial logistic regression by L-BFGS.

    The loss is the sum of the cross-entropies plus half the squared norm of the
    weights, the default of scikit-learn's ``LogisticRegression``. Inputs are
    vectors [N, D], or integers [N, C], the indices of ones in binary vectors.
    Returns a function from inputs to logits [N, ``num_classes``].

    Example
    -------
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> probe = fit_probe(x, torch.tensor([0, 0, 1, 1]), 2)
    >>> probe(torch.tensor([[-3.0], [0.5]])).argmax(1)
    tensor([0, 1])
    """
    sparse = not inputs.is_floating_point()
    size = int(inputs.max()) + 1 if sparse else inputs.shape[1]
    dtype = torch.float32 if sparse else inputs.dtype
    weight = torch.zeros(size, num_classes, dtype=dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=dtype, requires_grad=True)

    def logits(x):
        """Compute the logits of the classes."""
        if not sparse:
            return x @ weight + bias
        # Ignore indices above those in the training data.
        known = (x < size).to(dtype)
        return bias + embedding_bag(
            x.clamp(max=size - 1), weight, mode="sum", per_sample_weights=known
        )

    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=100,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure():
        """Compute the loss and its gradient."""
        solver.zero_grad()
        loss = cross_entropy(logits(inputs), labels, reduction="sum")
        loss = (loss + weight.square().sum() / 2) / len(labels)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    return logits


def stratified_folds(
    groups: Sequence, number: int = 5, seed: int = 0
) -> torch.Tensor:
    """Assign N examples to ``number`` folds [N], each with an equal share of
    each group, for example a class."""
    order = []
    for group in sorted(set(groups)):
        members = [i for i, g in enumerate(groups) if g == group]
        random.Random(f"{seed} {group}").shuffle(members)
        order += members
    folds = torch.empty(len(groups), dtype=torch.long)
    folds[order] = torch.arange(len(groups)) % number
    return folds


def cross_validate(
    inputs: torch.Tensor, labels: Sequence, folds: torch.Tensor
) -> torch.Tensor:
    """Return whether each example [N] is classified correctly by a probe
    trained on the other folds; see ``fit_probe`` and ``stratified_folds``.

    Vectors are standardized with the mean and standard deviation of the
    training folds.
    """
    classes = sorted(set(labels))
    targets = torch.tensor([classes.index(label) for label in labels])
    correct = torch.zeros(len(targets), dtype=torch.bool)
    for fold in folds.unique():
        train, test = folds != fold, folds == fold
        if not train.any():
            continue
        x = inputs
        if x.is_floating_point():
            mean, std = x[train].mean(0), x[train].std(0, correction=0)
            x = (x - mean) / torch.where(std > 1e-6, std, 1.0)
        probe = fit_probe(x[train], targets[train], len(classes))
        correct[test] = probe(x[test]).argmax(1) == targets[test]
    return correct


def sample_utterances(
    manifest: dict[str, dict],
    max_speakers: int = 100,
    max_utterances: int = 20,
    seed: int = 0,
) -> set[str]:
    """Draw the names of at most ``max_utterances`` utterances of each of at
    most ``max_speakers`` speakers. If the manifest names no speakers, draw the
    same total number of utterances."""
    by_speaker = collections.defaultdict(list)
    for name, entry in manifest.items():
        by_speaker[entry.get("spk_id") or name].append(name)
    limit = max_speakers
    if not any(entry.get("spk_id") for entry in manifest.values()):
        limit = max_speakers * max_utterances
    draw = random.Random(seed)
    names = set()
    for speaker in draw.sample(sorted(by_speaker), min(limit, len(by_speaker))):
        candidates = by_speaker[speaker]
        number = min(max_utterances, len(candidates))
        names.update(draw.sample(candidates, number))
    return names


class LinearProbes(Metric):
    """Accuracies of linear probes in five-fold cross-validation over
    utterances.

    - ``speaker_from_units``: from the histogram of an utterance's units.
      ``speaker_from_latents``, ``speaker_from_codewords``: from the mean and
      standard deviation over time of vectors before and after quantization.
      The same for ``gender``.
    - ``phone_from_units``, ``phone_from_latents``: from the units or the latent
      of a single frame, on up to 100 frames per utterance and 10 000 in total.
    - ``*_chance``: relative frequency of the most frequent class.

    Only the utterances in ``names`` are used, see ``sample_utterances``.
    Confidence intervals resample test utterances, without refitting probes.
    """

    label = "Accuracy of linear probes"

    def __init__(self, names: set[str], seed: int = 0):
        self.names, self.seed = names, seed
        # (Labels, inputs by source, weights) by target and utterance.
        self._examples = collections.defaultdict(dict)

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Add an utterance, see ``Metric``."""
        tokens, entry, name = utterance.tokens, utterance.entry, utterance.name
        number = len(tokens)
        if name not in self.names or not number:
            return
        draw = random.Random(f"{self.seed} {name}")
        frames = draw.sample(range(number), min(number, FRAMES_PER_UTTERANCE))
        phones = phones_of_frames(
            entry.get("phones"), number, utterance.token_rate
        )
        frames = [
            frame for frame in sorted(frames) if phones[frame] is not None
        ]
        pooled, of_frames = {"units": tokens}, {"units": tokens[frames]}
        for source in ("latents", "codewords"):
            vectors = getattr(utterance, source)
            if vectors is not None:
                moments = vectors.mean(0), vectors.std(0, correction=0)
                pooled[source] = torch.cat(moments)
        if utterance.latents is not None:
            of_frames["latents"] = utterance.latents[frames]
        for target, key in _LABELS.items():
            if entry.get(key):
                self._examples[target][name] = entry[key], pooled, weights
        if frames:
            names = [phones[frame] for frame in frames]
            self._examples["phone"][name] = names, of_frames, weights

    def compute(self) -> dict[str, Estimate]:
        """Compute the results, see ``Metric``."""
        return {
            **self._utterance_probes("speaker"),
            **self._utterance_probes("gender"),
            **self._phone_probes(),
        }

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Return notes on the results, see ``Metric``."""
        return [
            f"{target} probe: the manifest does not name two {target}s ({key}) "
            "with two utterances each"
            for target, key in _LABELS.items()
            if f"{target}_chance" not in estimates
        ]

    def _sorted_examples(self, target):
        """Return the labels, inputs and weights of all examples, sorted so that
        results do not depend on the order of utterances."""
        examples = sorted(self._examples[target].items())
        return [[example[i] for _, example in examples] for i in range(3)]

    def _utterance_probes(self, target):
        """Estimate accuracies for a label of utterances."""
        labels, inputs, weights = self._sorted_examples(target)
        sizes = collections.Counter(labels)
        kept = [i for i, label in enumerate(labels) if sizes[label] > 1]
        labels = [labels[i] for i in kept]
        if len(set(labels)) < 2:
            return {}
        inputs = {
            source: [inputs[i][source] for i in kept] for source in inputs[0]
        }
        inputs["units"] = _histograms(inputs["units"])
        inputs = {source: torch.stack(x) for source, x in inputs.items()}
        weights = torch.stack(weights)[kept]
        folds = stratified_folds(labels, seed=self.seed)
        return _accuracies(target, inputs, labels, weights, folds)

    def _phone_probes(self):
        """Estimate accuracies for the phones of frames."""
        phones, inputs, weights = self._sorted_examples("phone")
        labels = [name for names in phones for name in names]
        order = list(range(len(labels)))
        random.Random(self.seed).shuffle(order)
        order = order[:MAX_FRAMES]
        labels = [labels[index] for index in order]
        if len(set(labels)) < 2 or len(phones) < 2:
            return {}
        inputs = {
            source: torch.cat([x[source] for x in inputs])[order]
            for source in inputs[0]
        }
        # Offset the codes, so that each codebook has its own inputs.
        sizes = inputs["units"].amax(0) + 1
        inputs["units"] = inputs["units"] + torch.cumsum(sizes, 0) - sizes
        # The utterance of each frame.
        owners = [i for i, names in enumerate(phones) for _ in names]
        owners = torch.tensor(owners)[order]
        weights = torch.stack(weights)[owners]
        folds = stratified_folds([0] * len(phones), seed=self.seed)[owners]
        return _accuracies("phone", inputs, labels, weights, folds)


def _accuracies(target, inputs, labels, weights, folds):
    weights = weights.double()
    estimates = {}
    for source, x in inputs.items():
        correct = cross_validate(x, labels, folds).double() @ weights
        estimates[f"{target}_from_{source}"] = estimate(
            correct / weights.sum(0),
            Quantity(f"{target} from {source}", bounds=SHARE),
        )
    [(_, majority)] = collections.Counter(labels).most_common(1)
    estimates[f"{target}_chance"] = Estimate(
        majority / len(labels),
        quantity=Quantity(f"{target} chance", bounds=SHARE),
    )
    return estimates


def _histograms(tokens):
    """Return the relative frequencies of codes [C * K] in each utterance, from
    tokens [T, C]."""
    size = 1 + max(int(codes.max()) for codes in tokens)
    histograms = []
    for codes in tokens:
        counts = [column.bincount(minlength=size) for column in codes.T]
        histograms.append(torch.cat(counts) / len(codes))
    return histograms

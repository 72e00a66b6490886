"""Linear probes of speaker, gender and phone from units, latents and
codewords, by logistic regression."""

import collections
import random
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy, embedding_bag

from .intervals import estimate
from .metric import SHARE, Estimate, Metric, Quantity
from .phone_units import frame_middles, phones_at
from .utterances import Utterance

# Maximum number of frames for the phone probe, per utterance and in total.
FRAMES_PER_UTTERANCE = 100
MOST_FRAMES = 10_000


def fit_probe(
    inputs: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Fit multinomial logistic regression by L-BFGS.

    The loss is the sum of the cross-entropies plus half the squared norm of the
    weights, the default of scikit-learn's ``LogisticRegression``. Inputs are
    vectors [N, D], or integers [N, C]: the indices of the ones in binary
    vectors. Returns a function from inputs to logits [N, ``num_classes``].

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
        if not sparse:
            return x @ weight + bias
        # Indices above those of the training data contribute nothing.
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
    each group, such as a class."""
    folds, next_fold = torch.zeros(len(groups), dtype=torch.long), 0
    for group in sorted(set(groups)):
        members = [i for i, g in enumerate(groups) if g == group]
        random.Random(f"{seed} {group}").shuffle(members)
        for member in members:
            folds[member] = next_fold % number
            next_fold += 1
    return folds


def cross_validate(
    inputs: torch.Tensor, labels: Sequence, folds: torch.Tensor
) -> torch.Tensor:
    """Return whether each example [N] is classified correctly by a probe
    trained on the other folds; see ``fit_probe`` and ``stratified_folds``.

    Vectors are standardized by the mean and standard deviation of the training
    folds.
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
    most ``max_speakers`` speakers. If the manifest names no speaker, draw the
    same number of utterances in total."""
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


class _Example:
    """Inputs and labels of the probes from one utterance, and its weights."""

    def __init__(self, utterance, frames, weights):
        entry, latents = utterance.entry, utterance.latents
        self.name, self.weights = utterance.name, weights
        self.tokens = tokens = utterance.tokens
        self.labels = {
            "speaker": entry.get("spk_id"),
            "gender": entry.get("gender"),
        }
        self.pooled, self.frames = {}, {"units": tokens[frames]}
        if latents is not None:
            self.frames["latents"] = latents[frames]
        for name in ("latents", "codewords"):
            vectors = getattr(utterance, name)
            if vectors is not None:
                moments = vectors.mean(0), vectors.std(0, correction=0)
                self.pooled[name] = torch.cat(moments)
        middles = frame_middles(len(tokens), utterance.token_rate)
        middles = [middles[frame] for frame in frames]
        self.phones = phones_at(entry.get("phones") or (), middles)


class LinearProbes(Metric):
    """Accuracies of linear probes in five-fold cross-validation over
    utterances.

    - ``speaker_from_units``: from the histogram of the units of an utterance.
      ``speaker_from_latents``, ``speaker_from_codewords``: from the mean and
      standard deviation over time of vectors before and after quantization.
      The same for ``gender``.
    - ``phone_from_units``, ``phone_from_latents``: from the units or the latent
      of a single frame, on up to 100 frames per utterance and 10 000 in total.
    - ``*_chance``: share of the most frequent class.

    Only the utterances in ``names`` are used, see ``sample_utterances``.
    Intervals resample test utterances; the probes are not fitted again.
    """

    label = "Accuracy of linear probes"

    def __init__(self, names: set[str], seed: int = 0):
        self.names, self.seed = names, seed
        self._examples = []

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Keep the inputs and labels of an utterance."""
        number = len(utterance.tokens)
        if utterance.name not in self.names or not number:
            return
        draw = random.Random(f"{self.seed} {utterance.name}")
        frames = draw.sample(range(number), min(number, FRAMES_PER_UTTERANCE))
        self._examples.append(_Example(utterance, sorted(frames), weights))

    def compute(self) -> dict[str, Estimate]:
        """Estimate the accuracies for all labels that the manifest has."""
        # Results must not depend on the order of utterances.
        self._examples.sort(key=lambda example: example.name)
        return {
            **self._utterance_probes("speaker"),
            **self._utterance_probes("gender"),
            **self._phone_probes(),
        }

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Explain missing values."""
        return [
            f"{target} probe: the manifest ({key}) does not name two {target}s "
            "with two utterances each"
            for target, key in (("speaker", "spk_id"), ("gender", "gender"))
            if f"{target}_chance" not in estimates
        ]

    def _utterance_probes(self, target):
        """Estimate accuracies for a label of utterances."""
        sizes = collections.Counter(e.labels[target] for e in self._examples)
        classes = {label for label, n in sizes.items() if label and n > 1}
        examples = [e for e in self._examples if e.labels[target] in classes]
        labels = [example.labels[target] for example in examples]
        if len(set(labels)) < 2:
            return {}
        inputs = {"units": _histograms([e.tokens for e in examples])}
        for name in examples[0].pooled:
            inputs[name] = torch.stack([e.pooled[name] for e in examples])
        weights = [example.weights for example in examples]
        folds = stratified_folds(labels, seed=self.seed)
        cases = len(examples)
        return self._accuracies(target, inputs, labels, weights, folds, cases)

    def _phone_probes(self):
        """Estimate accuracies for the phones of frames."""
        examples = [
            example
            for example in self._examples
            if any(phone is not None for phone in example.phones)
        ]
        rows = [
            (i, j)
            for i, example in enumerate(examples)
            for j, phone in enumerate(example.phones)
            if phone is not None
        ]
        random.Random(self.seed).shuffle(rows)
        rows = rows[:MOST_FRAMES]
        labels = [examples[i].phones[j] for i, j in rows]
        if len(set(labels)) < 2 or len(examples) < 2:
            return {}
        inputs = {
            name: torch.stack([examples[i].frames[name][j] for i, j in rows])
            for name in examples[0].frames
        }
        # Offset the codes, so that codebooks do not share inputs.
        sizes = inputs["units"].amax(0) + 1
        inputs["units"] = inputs["units"] + torch.cumsum(sizes, 0) - sizes
        weights = [examples[i].weights for i, _ in rows]
        folds = stratified_folds([0] * len(examples), seed=self.seed)
        folds = folds[torch.tensor([i for i, _ in rows])]
        cases = len(examples)
        return self._accuracies("phone", inputs, labels, weights, folds, cases)

    def _accuracies(self, target, inputs, labels, weights, folds, cases):
        weights = torch.stack(weights).double()
        estimates = {}
        for source, x in inputs.items():
            correct = cross_validate(x, labels, folds).double() @ weights
            estimates[f"{target}_from_{source}"] = estimate(
                correct / weights.sum(0),
                Quantity(f"{target} from {source}", bounds=SHARE),
                cases,
            )
        [(_, majority)] = collections.Counter(labels).most_common(1)
        estimates[f"{target}_chance"] = Estimate(
            majority / len(labels),
            quantity=Quantity(f"{target} chance", bounds=SHARE),
        )
        return estimates


def _histograms(tokens):
    """Return the shares of the codes of each utterance [N, C * K], from tokens
    [T, C]."""
    size = 1 + max(int(codes.max()) for codes in tokens)
    histograms = []
    for codes in tokens:
        counts = [column.bincount(minlength=size) for column in codes.T]
        histograms.append(torch.cat(counts) / len(codes))
    return torch.stack(histograms)

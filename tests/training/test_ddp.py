"""Ranks agree, and are together what one process is with all the data: real
ranks over gloo, which send each other what docs/scaling.md says."""

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import speechbrain_vq
from speechbrain_vq import (
    CodebookTrainer,
    ReinitSchedule,
    VectorQuantizer,
    nnet,
)
from tests.training.processes import RANK_OPTIONS, run_ranks
from tests.training.toy import DIM, Toy, batches, digest, make, modules

KINDS = ("gradient", "ema")
PARITIES = [(k, o) for k in KINDS for o in ("ragged", "padding", "empty")]


class Watched(Toy):
    """Notes the bits of the codebook, and of all parameters, at each step,
    and meets NaN on the second rank in a batch."""

    nan_at, trail = None, ()

    def fit_batch(self, batch):
        if distributed.get_rank() == 1 and len(self.trail) == self.nan_at:
            batch = [batch[0] * torch.nan]
        loss = super().fit_batch(batch)
        (quantizer,) = self.quantizers.values()
        codebook = digest(quantizer.embedding.state_dict())
        bits = codebook, digest(list(self.modules.parameters()))
        self.trail = [*self.trail, bits]
        return loss


def fit(kind, nan_at=None, folder=None, epochs=(1, 2)):
    """A fit over both ranks."""
    # Each rank would start elsewhere, were they not made to agree.
    torch.manual_seed(distributed.get_rank())
    brain = make(
        Watched,
        modules(codebook=kind),
        folder=folder,
        run=RANK_OPTIONS,
        reinit_schedule=ReinitSchedule(2, 3),
    )
    brain.nan_at = nan_at
    valid = batches(2) if folder else None
    brain.fit(epochs, batches(8), valid, progressbar=False)
    return brain.trail, brain.optimizer_step, brain.vq_stats["train"]


def ragged(rank, other):
    """What a rank holds: a padded batch and its lengths."""
    generator = torch.Generator().manual_seed(rank)
    if rank == 0:
        x = torch.randn(3, 10, DIM, generator=generator)
        return x, torch.tensor([1.0, 0.5, 0.3])
    x = 2 + torch.randn(2, 8, DIM, generator=generator)
    if other == "empty":
        return x[:0], torch.ones(0)
    if other == "padding":
        return x, torch.zeros(2)
    return x, torch.tensor([0.5, 0.25])


def build(kind):
    """The same quantizer in each process."""
    torch.manual_seed(0)
    return VectorQuantizer(DIM, 8, codebook=kind, affine=True)


def learned(quantizer, out, quantized_weight=1):
    """What a step changes: gradients and statistics; and the loss."""
    (out.loss + quantized_weight * out.quantized.square().sum()).backward()
    gradients = {n: p.grad for n, p in quantizer.named_parameters()}
    return [gradients, dict(quantizer.named_buffers()), out.loss.detach()]


def parity(kind, other):
    """One training step where the second rank holds something else."""
    quantizer = build(kind)
    x, lengths = ragged(distributed.get_rank(), other)
    # It lives until the backward pass.
    wrapped = DistributedDataParallel(quantizer)
    out = wrapped(x.requires_grad_(), lengths)
    # DDP averages: twice the mean over two ranks is the sum.
    return learned(quantizer, out, quantized_weight=2)


def step(output, *optimizers):
    """One training step of what made an output."""
    (output.quantized.square().mean() + output.loss).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def sharded(rank):
    """Train a quantizer that FSDP leaves whole; the bits of its state."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    torch.manual_seed(rank)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
    encoder = fsdp.fully_shard(torch.nn.Linear(DIM, DIM), mesh=mesh)
    quantizer = VectorQuantizer(DIM, 8, codebook_dim=2)
    model = torch.nn.ModuleList([encoder, quantizer])
    codebook, *rest = quantizer.codebook, *quantizer.project.parameters()
    rest += quantizer.project_back.parameters()
    optimizers = [
        torch.optim.Adam(parameters, foreach=False)
        for parameters in (rest, [codebook, *encoder.parameters()])
    ]
    trainer = CodebookTrainer(model, optimizers, schedule=ReinitSchedule(2, 9))
    for _ in range(6):
        step(quantizer(encoder(torch.randn(50, DIM))), *optimizers)
    trainer.close()
    return digest(quantizer.state_dict())


def dropout(rank):
    """Train with another number of codebooks on each rank; bits and gathered
    vectors after a stream that is longer than NumPy's limit."""
    torch.manual_seed(rank)
    options = {"quantizer_dropout": 0.9, "entropy_weight": 0.5}
    quantizer = nnet.ResidualVectorQuantizer(3, DIM, 8, **options)
    model = DistributedDataParallel(quantizer)
    optimizer = torch.optim.Adam(model.parameters())
    CodebookTrainer(model, optimizer, schedule=None)
    for _ in range(8):
        step(model(torch.randn(50, DIM)), optimizer)
    quantizer.reservoir.count.fill_(10**9)
    return digest(quantizer.codebook), len(quantizer.reservoir.gather(0))


def evaluated(rank):
    """Train the rest of a model while the quantizer is in evaluation mode, and
    with k-means asked of the rank that has not loaded a codebook."""
    torch.manual_seed(0)
    options = {"codebook_dim": 2, "codebook_init": "kmeans"}
    quantizer = VectorQuantizer(DIM, 8, **options)
    if rank == 0:
        state = VectorQuantizer(DIM, 8, **options).state_dict()
        state["norm.running_mean"] += 1  # Of a trained norm
        quantizer.load_state_dict(state)
    model = DistributedDataParallel(quantizer)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    CodebookTrainer(model, optimizer, schedule=None)
    parts, bits = (quantizer.codebook, quantizer.project.weight), []
    for number in range(6):
        quantizer.train(number != 3)
        quantizer.embedding.train(number < 2)
        step(model(torch.randn(50, DIM)), optimizer)
        bits.append([digest(part) for part in parts])
    return bits


def samples(rank, rounds=200, capacity=100):
    """Samples of both ranks' streams of numbers: the first has seen 1000, the
    second 3000."""
    first, last = ((0, 1000), (1000, 4000))[rank]
    drawn = []
    for seed in range(rounds):
        torch.manual_seed(1000 * rank + seed)
        reservoir = speechbrain_vq.Reservoir(capacity, 1)
        reservoir.add(torch.arange(first, last).view(-1, 1).float())
        drawn.append(reservoir.gather(seed).flatten())
    return torch.stack(drawn)


def on_rank(rank, folder):
    """Do all, and save what came of it."""
    save, results = folder / "save", {}
    results["gradient"] = fit("gradient", folder=save)
    results["resumed"] = fit("gradient", folder=save, epochs=(3,))
    results["ema"] = fit("ema")
    for kind in KINDS:
        results[f"nan {kind}"] = fit(kind, nan_at=2)
    for task in (samples, dropout, evaluated, sharded):
        results[task.__name__] = task(rank)
    results.update({some: parity(*some) for some in PARITIES})
    torch.save(results, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    assert run_ranks(2, on_rank, folder) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """What each rank found."""
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize(
    "run, batches, steps",
    [
        ("gradient", 8, 8),
        ("resumed", 4, 12),
        ("ema", 8, 8),
        ("nan gradient", 8, 7),
        ("nan ema", 8, 7),
    ],
)
def test_ranks_hold_the_same_bits_after_every_step(ranks, run, batches, steps):
    first, second = (rank[run] for rank in ranks)
    assert first == second
    trail, number, stats = first
    assert (len(trail), number) == (batches, steps)
    assert stats["vectors"] == 8 * 30  # Of both ranks, in the last epoch
    parameters = [bits for _, bits in trail]
    if "nan" in run:  # What one rank cannot use, both skip.
        assert parameters[2] == parameters[1]
        del parameters[2]
    assert len(set(parameters)) == len(parameters)


def test_ranks_agree_whatever_each_of_them_uses(ranks):
    first, second = ranks
    for name in ("sharded", "dropout", "evaluated"):
        assert first[name] == second[name]
    assert first["dropout"][1] == 20480
    # A codebook in evaluation mode waits for no gradient.
    codebooks, projections = zip(*first["evaluated"], strict=True)
    assert len(set(codebooks)) == 2 and len(set(projections)) == 6


def test_checkpoints_are_those_of_one_process(ranks, folder):
    found = Checkpointer(folder / "save").list_checkpoints()
    # Both ranks validate on all of two batches.
    assert [c.meta["valid_vectors"] for c in found] == [120, 120]
    assert not (folder / "save" / ".partial").exists()


def test_sample_is_uniform_over_both_ranks(ranks):
    drawn, other = (rank["samples"] for rank in ranks)
    assert torch.equal(drawn, other)
    assert all(len(sample.unique()) == 100 for sample in drawn)
    counts = torch.histc(drawn, bins=8, min=0, max=4000)
    mean = counts.mean()
    # The 99.9th percentile of chi-square with 7 degrees of freedom.
    assert ((counts - mean).square() / mean).sum() < 24.3


@pytest.mark.parametrize("kind, other", PARITIES)
def test_two_ranks_are_one_with_the_whole_batch(ranks, kind, other):
    quantizer, frames = build(kind), []
    for rank in (0, 1):
        x, lengths = ragged(rank, other)
        numbers = (lengths * x.shape[1]).round().long()
        frames += [item[:n] for item, n in zip(x, numbers, strict=True)]
    *whole, loss = learned(quantizer, quantizer(torch.cat(frames)))
    losses = []
    for rank in ranks:
        *part, own_loss = rank[kind, other]
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)
        losses.append(own_loss)
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(mean, loss, rtol=1e-4, atol=1e-6)


# Over a run, also resumed ---------------------------------------------------


BOUND = 1e-5  # Of the largest number of a codebook.
NUMBER, ITEMS = 32, 12  # Batches, and what they hold.


class Composed(Toy):
    """Has two quantizers beside each other."""

    def compute_forward(self, batch, stage):
        latents = self.modules.encoder(batch[0])
        one, two = self.modules.one(latents), self.modules.two(latents)
        quantized = torch.cat([one.quantized, two.quantized], -1)
        return one._replace(quantized=quantized, loss=one.loss + two.loss)


def clusters():
    """Global batches of eight far clusters, so that k-means has one answer."""
    generator = torch.Generator().manual_seed(0)
    means = 10 * torch.randn(8, DIM, generator=generator)
    labels = torch.randint(8, (NUMBER, ITEMS, 10), generator=generator)
    noise = torch.randn(*labels.shape, DIM, generator=generator)
    return means[labels] + noise / 10


def train(rank, world, folder, part):
    """Train on every so many of the items of each batch of a part."""
    torch.manual_seed(rank)
    options = {"codebook_size": 8, "reservoir_size": 5000}
    parts = {
        "encoder": torch.nn.Linear(DIM, DIM),
        "one": VectorQuantizer(DIM, codebook="ema", ema_decay=0.9, **options),
        "two": VectorQuantizer(DIM, **options),
        "decoder": torch.nn.Linear(2 * DIM, DIM),
    }
    torch.nn.init.eye_(parts["encoder"].weight)
    torch.nn.init.constant_(parts["decoder"].weight, 0.1)
    run = {"grad_accumulation_factor": 2, "ckpt_interval_steps": 8}
    run |= RANK_OPTIONS
    brain = make(
        Composed,
        parts,
        lambda parameters: torch.optim.SGD(parameters, 1e-4),
        folder=folder / "save",
        run=run,
        # At the steps of the checkpoints.
        reinit_schedule=ReinitSchedule(4, 4),
    )
    shares = [(x[rank::world],) for x in clusters()[part]]
    # Not a data set, of which each rank would be given a part.
    loader = torch.utils.data.DataLoader(shares, batch_size=None)
    brain.fit([1], loader, progressbar=False)
    books = {k: q.codebook.detach() for k, q in brain.quantizers.items()}
    torch.save(books, folder / f"rank{rank}")


def trained(folder, *runs):
    """The codebooks of runs by so many ranks on some of the batches, one after
    the other; they are the same on all ranks."""
    for world, part in runs:
        assert run_ranks(world, train, world, folder, part) == [0] * world
    first, *others = (torch.load(folder / f"rank{n}") for n in range(world))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)
    return first


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The codebooks of one process."""
    return trained(tmp_path_factory.mktemp("one"), (1, slice(NUMBER)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "worlds", [(2,), (3,), (4,), (3, 3), (3, 2), (1, 4)], ids=str
)
def test_ranks_train_the_codebooks_of_one_process(alone, tmp_path, worlds):
    """Also as many or other ranks that go on from their checkpoint."""
    half = NUMBER // len(worlds)
    parts = [slice(half), slice(half, None)]
    found = trained(tmp_path, *zip(worlds, parts, strict=False))
    for key, codebook in alone.items():
        distance = (found[key] - codebook).abs().max() / codebook.abs().max()
        assert distance < BOUND, key


# What is sent ---------------------------------------------------------------

SIZE, BOOKS, CAPACITY = 8, 2, 40


def count_traffic(rank, folder, kind):
    """Save the number of elements that each call sends, by step."""
    sent = []
    # The second argument of all_gather is what a rank sends.
    for name, place in ("all_reduce", 0), ("all_gather", 1), ("broadcast", 0):
        send = getattr(distributed, name)

        def counted(*args, send=send, place=place, **options):
            sent.append(args[place].numel())
            return send(*args, **options)

        setattr(distributed, name, counted)
    quantizer = VectorQuantizer(
        *(DIM, SIZE, DIM, BOOKS, "residual"),
        codebook=kind,
        reservoir_size=CAPACITY,
        entropy_weight=0.5 if kind == "gradient" else 0.0,
    )
    linear = torch.nn.Linear(DIM, DIM)
    model = torch.nn.ModuleList([linear, quantizer])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = ReinitSchedule(2, 1)
    speechbrain_vq.CodebookTrainer(model, optimizer, schedule=schedule)
    steps = []
    for _ in range(3):
        sent.clear()
        out = quantizer(linear(torch.randn(30, DIM)))
        (out.quantized.square().sum() + out.loss).backward()
        of_batch = sorted(sent)
        sent.clear()
        optimizer.step()
        steps.append((of_batch, sorted(sent)))
    if rank == 0:
        torch.save(steps, folder / "steps")


@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_traffic_of_steps_and_of_reinitializations(tmp_path, kind):
    assert run_ranks(2, count_traffic, tmp_path, kind) == [0, 0]
    warmup, _, last = torch.load(tmp_path / "steps")
    norm, codebook = [1, DIM, DIM], BOOKS * SIZE * DIM
    # The usage of codes, and its gradient.
    others, moved = [3 * BOOKS, BOOKS * SIZE, BOOKS * SIZE], [codebook]
    if kind == "ema":
        others = [BOOKS * SIZE * (DIM + 1)]
        # With the codebook, what an EMA codebook has beside it.
        moved += [codebook, codebook, BOOKS * SIZE]
    assert warmup == (norm, [])
    sent = [*norm, 1, *others], [CAPACITY * DIM, 1, 1, *moved]
    assert last == tuple(map(sorted, sent))

"""Codebooks: their starts, averages, lattices by brute force."""

import pytest
import torch
from torch.nn import functional as F

from speechbrain_vq.nnet import VectorQuantizer, codebooks
from speechbrain_vq.nnet.codebooks import EMACodebook, FSQCodebook, LFQCodebook


def batch(codebook, number=40, used=None):
    """Random vectors, codes and mask for a codebook."""
    books, size, dim = codebook.weight.shape
    return (
        torch.randn(number, books, dim),
        torch.randint(used or size, (number, books)),
        torch.rand(number) < 0.8,
    )


class Recursion:
    """Exponential moving averages by their formula, in double precision."""

    def __init__(self, codebook):
        self.decay = codebook.decay
        self.sum = codebook.ema_sum.double()
        self.count = codebook.ema_count.double()

    def learn(self, vectors, indices, mask):
        chosen = F.one_hot(indices[mask], self.count.shape[1]).double()
        new_sum = torch.einsum("nbk,nbd->bkd", chosen, vectors[mask].double())
        self.sum = self.decay * self.sum + (1 - self.decay) * new_sum
        self.count = self.decay * self.count + (1 - self.decay) * chosen.sum(0)

    def check(self, codebook):
        weight = self.sum / self.count.unsqueeze(2)
        found = codebook.weight, codebook.ema_sum, codebook.ema_count
        wanted = [part.float() for part in (weight, self.sum, self.count)]
        torch.testing.assert_close([*found], wanted, rtol=1e-4, atol=1e-5)


def test_initial_values_are_of_the_scale_promised():
    xavier = torch.nn.init.xavier_uniform_(torch.empty(32, 64))
    for init, largest, deviation in (
        ("uniform", 1 / 32, 1 / 32 / 3**0.5),
        ("xavier", (6 / 96) ** 0.5, float(xavier.std())),
        ("normal", torch.inf, 1),
    ):
        ours = codebooks.Codebook(4, 32, 64, init=init).weight.detach()
        assert float(ours.std()) == pytest.approx(deviation, rel=0.05)
        assert ours.abs().max() <= largest


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_averages_follow_the_recursion(decay):
    codebook = EMACodebook(2, 6, 3, decay=decay)
    recursion = Recursion(codebook)
    for _ in range(30):
        data = batch(codebook, number=200)
        codebook.learn(*data)
        recursion.learn(*data)
        recursion.check(codebook)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_a_code_never_chosen_keeps_its_place_until_it_is(decay):
    codebook = EMACodebook(2, 6, 3, decay=decay)
    before = codebook.weight.clone()
    vectors, codes, mask = batch(codebook, used=3)
    for _ in range(1000):
        codebook.learn(vectors, codes, mask)
    assert torch.equal(codebook.weight[:, 3:], before[:, 3:])
    assert not torch.isclose(codebook.weight, before)[:, :3].any()
    codebook.learn(vectors, codes + 3, mask)
    for book, code in enumerate(codes.T):
        moved = vectors[mask & (code == 0), book].mean(0)
        torch.testing.assert_close(codebook.weight[book, 3], moved)


def test_averages_go_on_from_a_reinitialization():
    codebook = EMACodebook(2, 6, 3, decay=0.9)
    for _ in range(20):
        codebook.learn(*batch(codebook))
    mass = codebook.ema_count.sum(1)
    # The second codebook has two vectors, and so four codes without any.
    latents = torch.randn(40, 6)
    latents[:, 3:] = latents[:2, 3:].repeat(20, 1)
    codebook.reinitialize(latents, "kmeans++", torch.Generator())
    torch.testing.assert_close(codebook.ema_count.sum(1), mass)
    torch.testing.assert_close(
        codebook.ema_sum, codebook.weight * codebook.ema_count.unsqueeze(2)
    )
    indices, targets = codebook.code(latents, codebook.weight)
    assert len(indices[:, 1].unique()) == 2
    recursion, before = Recursion(codebook), codebook.weight.clone()
    for _ in range(10):
        data = targets, indices, torch.ones(40, dtype=torch.bool)
        codebook.learn(*data)
        recursion.learn(*data)
        recursion.check(codebook)
    unused = torch.isin(torch.arange(6), indices[:, 1], invert=True)
    assert torch.equal(codebook.weight[1, unused], before[1, unused])


# Fixed, in part or as a whole ------------------------------------------------


@pytest.mark.parametrize(
    "kind, size, dim, levels",
    [
        # Mentzer et al. (2023), table 1.
        (FSQCodebook, 240, 3, [8, 6, 5]),
        (FSQCodebook, 1000, 4, [8, 5, 5, 5]),
        (FSQCodebook, 4375, 5, [7, 5, 5, 5, 5]),
        (FSQCodebook, 15360, 5, [8, 8, 8, 6, 5]),
        (FSQCodebook, 7, 1, [7]),
        (LFQCodebook, 512, 9, [2] * 9),
    ],
)
def test_a_lattice_is_coded_by_its_nearest_point(kind, size, dim, levels):
    codebook = kind(2, size, dim)
    assert codebook.levels == levels
    assert len(codebook.weight[0].unique(dim=0)) == size
    # Within, far outside, and on the points themselves.
    x = 3 * torch.randn(400, 2, dim)
    x[:size] = codebook.weight.transpose(0, 1)[:400]
    if kind is FSQCodebook:
        torch.testing.assert_close(codebook.constrain(x), x.tanh())
    codes, targets = codebook.code(x.flatten(1), codebook.table)
    distances = (x.double().unsqueeze(2) - codebook.weight).square().sum(3)
    assert torch.equal(codes, distances.argmin(2)) and torch.equal(targets, x)
    number = min(size, 400)
    each = torch.arange(number).unsqueeze(1).expand(number, 2)
    assert torch.equal(codes[:number], each)


def test_the_gradient_of_fsq_is_that_of_its_tanh():
    quantizer = VectorQuantizer(3, 512, codebook="fsq", norm=None)
    x, gradient = torch.randn(2, 50, 3)
    x.requires_grad_()
    out = quantizer(x)
    (out.quantized * gradient).sum().backward()
    torch.testing.assert_close(x.grad, gradient * (1 - x.tanh().square()))
    assert out.loss == 0 and not list(quantizer.parameters())


def test_each_gradient_moves_all_codewords_of_simvq():
    quantizer = VectorQuantizer(6, 16, codebook="simvq", norm=None)
    codebook, x = quantizer.embedding, torch.randn(50, 6)
    base, before = codebook.weight.clone(), codebook.table.detach().clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        quantizer(x[:1]).loss.backward()
        optimizer.step()
    moved = (codebook.table.detach() - before).abs().amax(2)
    assert (moved > 0).all() and torch.equal(codebook.weight, base)
    codes = quantizer.encode(x)
    distances = torch.cdist(x, codebook.table[0])
    assert torch.equal(codes, distances.argmin(1))
    assert torch.equal(quantizer.decode(codes), codebook.table[0][codes])
    # The codeword of the one vector learned comes to lie on it.
    assert distances[0].min() < torch.cdist(x[:1], before[0]).min()

"""PixelCNN: logits depend on previous pixels and their latents only."""

import pytest
import torch

from speechbrain_vq.lobes.pixelcnn import ColumnPixelCNN

TIME, HEIGHT = 7, 8


@pytest.fixture
def decoder():
    return ColumnPixelCNN(4, HEIGHT, channels=5, num_layers=3)


def influence(decoder, at):
    """Find the pixels and latents that the logits of one pixel depend on."""
    image = torch.rand(1, TIME, HEIGHT, dtype=torch.double).requires_grad_()
    latents = torch.randn(1, 4, 4, dtype=torch.double).requires_grad_()
    logits = decoder.double()(image, latents)[0, at[0], at[1]]
    weights = torch.randn(logits.shape, dtype=torch.double)
    gradients = torch.autograd.grad((logits * weights).sum(), (image, latents))
    return [gradient[0] != 0 for gradient in gradients]


@pytest.mark.parametrize("at", [(0, 0), (0, 5), (3, 0), (3, 4), (6, 0), (6, 7)])
def test_logits_depend_on_previous_pixels_only(decoder, at):
    time, row = at
    pixels, latents = influence(decoder, at)
    before = torch.zeros(TIME, HEIGHT, dtype=torch.bool)
    before[:time] = True
    before[time, :row] = True
    assert not (pixels & ~before).any()
    # The adjacent previous pixels do count.
    if row:
        assert pixels[time, row - 1]
    if time:
        near = slice(max(row - 1, 0), row + 2)
        assert pixels[time - 1, near].all()
    # A latent covers two columns.
    assert latents[time // 2].any() and not latents[time // 2 + 1 :].any()
    # The receptive field covers five columns.
    assert not time or pixels[max(time - 5, 0)].any()


def test_wider_padding_changes_nothing(decoder):
    levels = torch.randint(4, (2, TIME, HEIGHT))
    latents = torch.randn(2, 4, 4)
    wide = torch.cat((levels, torch.randint(4, (2, 6, HEIGHT))), dim=1)
    more = torch.cat((latents, torch.randn(2, 3, 4)), dim=1)
    padded = decoder(wide, more)[:, :TIME]
    torch.testing.assert_close(padded, decoder(levels, latents))


def test_decoder_learns_from_its_latents(decoder):
    """Only the latents determine the rows of the stripes."""
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    for _ in range(120):
        kinds = torch.randint(4, (16, 4))
        # The rows of adjacent stripes are independent.
        levels = torch.zeros(16, TIME + 1, HEIGHT, dtype=torch.long)
        levels.scatter_(2, 2 * kinds.repeat_interleave(2, 1).unsqueeze(2), 3)
        logits = decoder(levels, torch.eye(4)[kinds]).flatten(0, 2)
        loss = torch.nn.functional.cross_entropy(logits, levels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Without latents, the loss is ln 4 per two columns of 8 pixels.
    assert loss < 0.3 * torch.tensor(4.0).log() / (2 * HEIGHT)

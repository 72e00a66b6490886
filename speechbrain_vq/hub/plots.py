"""The pictures of a model card.

They need matplotlib, ``pip install "speechbrain-vq[report]"``.

Authors
 * speechbrain_vq authors 2026
"""

import pathlib

import soundfile
import torch


def plot_usage(
    counts: torch.Tensor, title: str, path: str | pathlib.Path
) -> None:
    """How often the codes were chosen, the most frequent first.

    Arguments
    ---------
    counts : torch.Tensor
        How often each code of each codebook was chosen, [C, K].
    title : str
        What was counted.
    path : path
        The png file to write.

    Example
    -------
    >>> plot_usage(torch.ones(1, 8), "Test", "usage.png")  # doctest: +SKIP
    """
    figure, (axis,) = _figure(1, height=3.0)
    ranks = range(1, counts.shape[1] + 1)
    for book, row in enumerate(counts.double()):
        share = row.sort(descending=True).values / max(row.sum(), 1)
        share = (100 * share).numpy()
        axis.step(ranks, share, where="mid", label=f"codebook {book + 1}")
        if len(counts) == 1:
            axis.fill_between(ranks, share, step="mid", alpha=0.3)
    # What it would be if all codes were as frequent.
    axis.axhline(100 / counts.shape[1], color="gray", linestyle=":")
    axis.set(
        xlabel="codes, the most frequent first",
        ylabel="% of the tokens",
        title=title,
        xlim=(1, counts.shape[1]),
        ylim=(0, None),
    )
    if len(counts) > 1:
        axis.legend()
    figure.savefig(path)


def plot_spectrograms(
    original: str | pathlib.Path,
    decoded: str | pathlib.Path,
    path: str | pathlib.Path,
) -> None:
    """The spectrogram of a recording over that of what its tokens keep.

    Arguments
    ---------
    original, decoded : path
        Two audio files of one channel.
    path : path
        The png file to write.

    Example
    -------
    >>> plot_spectrograms("a.wav", "b.wav", "ab.png")  # doctest: +SKIP
    """
    figure, axes = _figure(2, height=4.5)
    titles = ("original", "from its tokens")
    for axis, file, title in zip(
        axes, (original, decoded), titles, strict=True
    ):
        samples, rate = soundfile.read(file, dtype="float32")
        spectrum = torch.stft(
            torch.from_numpy(samples),
            n_fft=512,
            hop_length=128,
            window=torch.hann_window(512),
            return_complex=True,
        )
        # Silence has no logarithm; 80 dB below the loudest is dark enough.
        level = 20 * spectrum.abs().clamp(min=1e-8).log10().numpy()
        axis.imshow(
            level,
            vmin=level.max() - 80,
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(0, len(samples) / rate, 0, rate / 2000),
        )
        axis.set(title=title, ylabel="kHz")
    axes[-1].set(xlabel="seconds")
    figure.savefig(path)


def _figure(rows: int, height: float):
    # Without pyplot, no display is looked for and nothing is kept open.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), dpi=100, layout="constrained")
    return figure, figure.subplots(rows, squeeze=False, sharex=True)[:, 0]

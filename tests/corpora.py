"""Makes the small corpora that the lists in tests/recipes run on.

To run it from the root of the project:
> python -m tests.corpora wsj tests/tmp/wsj
"""

import pathlib

import click

from speechbrain_vq.recipes.ScribbleLens.render_handwriting import render
from tests.recipe_tests import phone_corpora, test_cifar10, vctk_corpus


def make_handwriting(folder, seed=1):
    """Rendered lines; the fonts need not look written."""
    import matplotlib

    fonts = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf")
    names = "DejaVuSans.ttf", "DejaVuSerif.ttf"
    render(folder, [fonts / name for name in names], 60, seed=seed)


def make_librispeech_ssl(folder):
    """The corpus, and an encoder to take its features of."""
    from tests.ssl_encoders import make_encoder

    phone_corpora.make_librispeech(folder)
    make_encoder("WavLM", folder / "encoder")


CORPORA = {
    "cifar10": test_cifar10.make_sheets,
    "debianspeech": phone_corpora.make_debianspeech,
    "festvoxru": phone_corpora.make_festvoxru,
    "librispeech": phone_corpora.make_librispeech,
    "librispeech_ssl": make_librispeech_ssl,
    "scribblelens": make_handwriting,
    "vctk": vctk_corpus.make_vctk,
    "wsj": phone_corpora.make_wsj,
}


@click.command()
@click.argument("corpus", type=click.Choice(sorted(CORPORA)))
@click.argument("folder", type=click.Path(path_type=pathlib.Path))
def main(corpus, folder):
    """Makes the corpus in the folder, if there is no such folder yet."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        CORPORA[corpus](folder)


if __name__ == "__main__":
    main()

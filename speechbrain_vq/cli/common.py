"""Options and error handling shared by the verbs."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import click

AGAIN = "Interrupted. The same command goes on from here."

file_path = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
folder_path = click.Path(exists=True, file_okay=False, path_type=pathlib.Path)
output_folder = click.Path(file_okay=False, path_type=pathlib.Path)

device_option = click.option(
    "--device", help="Device of the model, e.g. cpu or cuda; default: any GPU."
)
revision_option = click.option(
    "--revision", help="Branch, tag or commit of a model on the Hub."
)
vocoder_option = click.option(
    "--vocoder",
    metavar="FOLDER|ORG/NAME",
    help="Vocoder of the waveforms: a HiFi-GAN of SpeechBrain, or one on "
    "units; default: Griffin-Lim.",
)


@contextlib.contextmanager
def clean_errors(interrupted: str | None = None) -> Iterator[None]:
    """Show errors of the package as messages without a traceback.

    Arguments
    ---------
    interrupted : str, optional
        Message on Ctrl-C.
    """
    from speechbrain_vq.hub import HubError

    try:
        yield
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        raise click.ClickException(interrupted) from None
    except (HubError, ImportError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def check_output_folder(context, parameter, folder: pathlib.Path | None):
    """Refuse a folder that cannot be created, before anything is computed.

    Arguments
    ---------
    context, parameter
        As ``click`` passes them to callbacks.
    folder : pathlib.Path, optional
        Folder to write to.
    """
    if folder is None:
        return None
    parents = (folder, *folder.absolute().parents)
    parent = next(path for path in parents if os.path.lexists(path))
    if not parent.is_dir():
        raise click.BadParameter(f"'{parent}' is no folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise click.BadParameter(f"'{parent}' cannot be written to.")
    return folder

"""Options and error handling shared by the verbs."""

import contextlib
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator

import click

from speechbrain_vq._names import suggestion

logger = logging.getLogger(__name__)

INTERRUPTED = "Interrupted. The same command goes on from here."

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
    """Exit with one line on a user's mistake; the traceback goes to the log.

    Arguments
    ---------
    interrupted : str, optional
        Message on Ctrl-C.

    Example
    -------
    >>> with clean_errors():  # doctest: +SKIP
    ...     train(sys.argv[1:])
    """
    from speechbrain_vq.hub import HubError

    try:
        yield
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        message = interrupted
    except (HubError, ImportError, OSError, ValueError) as error:
        logger.debug("Traceback of the error:", exc_info=True)
        message = str(error)
    else:
        return
    click.echo(f"Error: {message}", err=True)
    sys.exit(1)


class Verbs(click.Group):
    """Suggest a verb for an unknown one, and refuse empty arguments."""

    def resolve_command(self, context, args):
        """Find the verb of a command line, and check the other arguments."""
        verb, *rest = args
        if verb not in self.commands:
            hint = suggestion(verb, self.commands)
            known = ", ".join(self.commands)
            context.fail(f"No such verb '{verb}'.{hint} Known: {known}.")
        for argument in rest:
            # An empty path would be the current folder.
            if not argument or re.fullmatch(r"-[\w-]+=", argument):
                name = argument.rstrip("=") or "An argument"
                raise click.ClickException(
                    f"{name} is empty: give a value, or leave it out."
                )
        return super().resolve_command(context, args)


def check_output_folder(context, parameter, folder: pathlib.Path | None):
    """Refuse a folder that cannot be created, before anything is computed."""
    if folder is None:
        return None
    parents = (folder, *folder.absolute().parents)
    parent = next(path for path in parents if os.path.lexists(path))
    if not parent.is_dir():
        raise click.BadParameter(f"'{parent}' is no folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise click.BadParameter(f"'{parent}' cannot be written to.")
    return folder

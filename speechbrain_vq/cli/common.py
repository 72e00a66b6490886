"""Options and error handling shared by the verbs."""

import contextlib
import logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Iterator

import click

from speechbrain_vq._names import suggestion
from speechbrain_vq.dataio.atomic import check_writable
from speechbrain_vq.recipe_files import one_line

logger = logging.getLogger(__name__)

INTERRUPTED = "Interrupted. Run the same command again to resume."
# Exit code of a command that SIGINT terminated: 128 + 2.
INTERRUPTED_CODE = 130


class ExistingPath(click.Path):
    """Path that must exist. The error message suggests the closest name."""

    def convert(self, value, parameter, context):
        """Check that a path exists, and return it."""
        if not os.path.lexists(value):
            siblings = map(str, pathlib.Path(value).parent.glob("*"))
            hint = suggestion(str(value), siblings)
            self.fail(f"there is no '{value}'.{hint}", parameter, context)
        return super().convert(value, parameter, context)


existing_path = ExistingPath(path_type=pathlib.Path)
file_path = ExistingPath(dir_okay=False, path_type=pathlib.Path)
folder_path = ExistingPath(file_okay=False, path_type=pathlib.Path)


class OutputPath(click.Path):
    """Output path that is checked to be writable before any computation."""

    def convert(self, value, parameter, context) -> pathlib.Path:
        """Check that a path can be written, and return it."""
        path = pathlib.Path(super().convert(value, parameter, context))
        folder = path.absolute().parent if self.file_okay else path.absolute()
        parent = next(filter(os.path.lexists, (folder, *folder.parents)))
        try:
            check_writable(parent)
        except OSError as error:
            self.fail(f"'{parent}' {error.strerror}.", parameter, context)
        return path


output_path = OutputPath()
output_file = OutputPath(dir_okay=False)
output_folder = OutputPath(file_okay=False)

# Model options by their keyword in ``from_hparams``.
_MODEL_OPTIONS = {
    "vocoder": click.option(
        "--vocoder",
        metavar="FOLDER|ORG/NAME",
        help="Vocoder: a SpeechBrain HiFi-GAN, a vocoder trained with the "
        "recipe DebianSpeech/vocoder, a unit vocoder, or griffin-lim; "
        "default: the model's own, else the bundled vocoder if it supports "
        "the model's log-mels, else Griffin-Lim.",
    ),
    "ssl_encoder": click.option(
        "--ssl-encoder",
        metavar="ORG/NAME|FOLDER",
        help="Self-supervised encoder of the model: its repository on the "
        "Hub, or a folder with a copy.",
    ),
    "num_codebooks": click.option(
        "--codebooks",
        "num_codebooks",
        metavar="N",
        type=click.IntRange(min=1),
        help="Number of codebooks to use, counted from the first; default: "
        "all. Fewer codebooks lower the bit rate.",
    ),
    "dtype": click.option(
        "--precision",
        "dtype",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default="fp32",
        show_default=True,
        help="Precision of the encoder.",
    ),
    "revision": click.option(
        "--revision", help="Branch, tag or commit of the model on the Hub."
    ),
    "device": click.option(
        "--device",
        help="Device of the model, e.g. cpu or cuda; default: a GPU if "
        "available.",
    ),
}


def model_options(*names: str):
    """Add model options to a verb. Their names are keywords of
    ``from_hparams``, so the verb can pass them on as ``**model``."""

    def decorate(verb):
        """Add the options to a verb."""
        for name in reversed(names):
            verb = _MODEL_OPTIONS[name](verb)
        return verb

    return decorate


engine_option = click.option(
    "--engine",
    type=click.Choice(["process", "ray"]),
    default="process",
    show_default=True,
    help="Engine that encodes the audio: this process, or a Ray cluster (the "
    "one at RAY_ADDRESS, else one started on this machine).",
)


@contextlib.contextmanager
def clean_errors(interrupted: str = INTERRUPTED) -> Iterator[None]:
    """Report user errors in one line, and exit.

    The traceback is logged, or shown with ``speechbrain-vq --debug``.
    ``interrupted`` is the message after Ctrl-C."""
    # Otherwise, printing a file name that is not UTF-8 fails. In a notebook,
    # stdout has no `reconfigure`.
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\n{interrupted}", err=True)
        sys.exit(INTERRUPTED_CODE)
    except BrokenPipeError:
        raise  # E.g. from `| head`: click exits without a message.
    except Exception as error:
        context = click.get_current_context(silent=True)
        debug = context and context.find_root().meta.get("debug")
        message = _user_message(error)
        if debug or message is None:
            raise
        logger.debug("Traceback of the error:", exc_info=True)
        click.echo(f"Error: {message}", err=True)
        sys.exit(1)


def _user_message(error: Exception) -> str | None:
    """Return the message for an error that the user can fix, else None."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, KeyError):
        return f"The key {error} is missing; --debug shows where."
    # Compare names, since importing torch, PyYAML, ruamel or the Hub is slow.
    names = {cls.__name__ for cls in type(error).__mro__}
    # PyTorch raises a RuntimeError on the CPU, an OutOfMemoryError on a GPU.
    if "OutOfMemoryError" in names or "can't allocate memory" in str(error):
        detail = str(error).splitlines()[0].split(": ")[-1].rstrip(".")
        return (
            f"Not enough memory ({detail}): use smaller batches, or a smaller "
            "codebook or model."
        )
    if "YAMLError" in names:
        return one_line(error)
    kinds = ImportError, MemoryError, OSError, ValueError
    if isinstance(error, kinds) or "HubError" in names:
        # An error in a data loader worker contains the worker's traceback.
        _, traceback, rest = str(error).partition("Original Traceback (")
        last = rest.splitlines()[-1].partition(": ")[2] if traceback else ""
        return last or str(error)
    return None


class Verbs(click.Group):
    """Command group that suggests the closest name for an unknown verb, rejects
    empty arguments, and reports user errors in one line."""

    def invoke(self, context):
        """Run a verb."""
        with clean_errors():
            return super().invoke(context)

    def resolve_command(self, context, args):
        """Find the verb, and check its arguments."""
        verb, *arguments = args
        if verb not in self.commands:
            hint = suggestion(verb, self.commands)
            known = ", ".join(self.commands)
            context.fail(f"No such command '{verb}'.{hint} Known: {known}.")
        for argument in arguments:
            # An empty path would mean the current folder.
            if not argument or re.fullmatch(r"-[\w-]+=", argument):
                name = argument.rstrip("=") or "An argument"
                raise click.ClickException(
                    f"{name} is empty: give a value, or leave it out."
                )
        if "--debug" in arguments:
            context.find_root().meta["debug"] = True
            arguments.remove("--debug")
        return super().resolve_command(context, [verb, *arguments])


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Show a message on terminals during slow imports, and let Ctrl-C exit at
    once. Some imports, such as NumPy's, turn a KeyboardInterrupt into other
    errors."""
    if sys.stderr.isatty():
        click.echo("Loading ...", err=True)
    handler = signal.getsignal(signal.SIGINT)
    # A process that ignores SIGINT, such as a background job, must keep
    # ignoring it.
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _exit(number, frame):
    """Exit at once, as there is nothing to clean up yet."""
    click.echo(f"\n{INTERRUPTED}", err=True)
    os._exit(INTERRUPTED_CODE)


def open_engine(name: str, model: dict):
    """Create an engine by name; None stands for this process. An engine takes
    over the model's device option, and the model itself loads on the CPU."""
    if name == "process":
        return None
    from speechbrain_vq.inference import RayEngine

    device, model["device"] = model.get("device"), "cpu"
    return RayEngine(device)

"""Options and error handling shared by the verbs."""

import contextlib
import functools
import logging
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Iterator

import click

from speechbrain_vq._names import suggestion
from speechbrain_vq.dataio.atomic import check_writable
from speechbrain_vq.recipe_files import one_line

logger = logging.getLogger(__name__)

INTERRUPTED = "Interrupted. The same command goes on from here."
# As the shell gives it to a program that Ctrl-C ends.
INTERRUPTED_CODE = 130


class ExistingPath(click.Path):
    """A path that must exist; the closest name beside it is suggested."""

    def convert(self, value, parameter, context):
        """Check a path."""
        if not os.path.lexists(value):
            beside = map(str, pathlib.Path(value).parent.glob("*"))
            hint = suggestion(str(value), beside)
            self.fail(f"there is no '{value}'.{hint}", parameter, context)
        return super().convert(value, parameter, context)


existing_path = ExistingPath(path_type=pathlib.Path)
file_path = ExistingPath(dir_okay=False, path_type=pathlib.Path)
folder_path = ExistingPath(file_okay=False, path_type=pathlib.Path)


class OutputPath(click.Path):
    """Path of an output, refused before anything is computed where it cannot be
    created."""

    def convert(self, value, parameter, context) -> pathlib.Path:
        """Check the folder, or that of the file."""
        path = pathlib.Path(super().convert(value, parameter, context))
        # A file is written beside others.
        folder = path.absolute().parent if self.file_okay else path.absolute()
        places = (folder, *folder.parents)
        parent = next(place for place in places if os.path.lexists(place))
        if not parent.is_dir():
            self.fail(f"'{parent}' is no folder.", parameter, context)
        try:
            check_writable(parent)
        except OSError as error:
            self.fail(f"'{parent}' {error.strerror}.", parameter, context)
        return path


output_path = OutputPath()
output_file = OutputPath(dir_okay=False)
output_folder = OutputPath(file_okay=False)

# Options of a model, by the keywords of ``from_hparams`` that they give.
_MODEL_OPTIONS = {
    "vocoder": click.option(
        "--vocoder",
        metavar="FOLDER|ORG/NAME",
        help="Vocoder: a SpeechBrain HiFi-GAN, one of DebianSpeech/vocoder, a "
        "unit vocoder, or griffin-lim; default: the bundled one, where it "
        "takes the model's log-mels, else Griffin-Lim.",
    ),
    "ssl_encoder": click.option(
        "--ssl-encoder",
        metavar="ORG/NAME|FOLDER",
        help="Self-supervised encoder of the model: its repository on the Hub, "
        "or a folder with a copy.",
    ),
    "num_codebooks": click.option(
        "--codebooks",
        "num_codebooks",
        type=click.IntRange(min=1),
        help="Use only the first N codebooks (lower bit rate); default: all.",
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
        "--revision", help="Branch, tag or commit of a model on the Hub."
    ),
    "device": click.option(
        "--device",
        help="Device of the model, e.g. cpu or cuda; default: any GPU.",
    ),
}


def model_options(*names: str):
    """Add options of a model; the verb gets those that are given as ``model``,
    keywords of ``from_hparams``."""

    def decorate(verb):
        @functools.wraps(verb)
        def run(**options):
            values = {name: options.pop(name) for name in names}
            model = {k: v for k, v in values.items() if v is not None}
            return verb(model=model, **options)

        for name in reversed(names):
            run = _MODEL_OPTIONS[name](run)
        return run

    return decorate


engine_option = click.option(
    "--engine",
    type=click.Choice(["process", "ray"]),
    default="process",
    show_default=True,
    help="Engine that encodes: this process, or the actors of a Ray cluster "
    "(at RAY_ADDRESS, or started on this machine).",
)


@contextlib.contextmanager
def clean_errors(interrupted: str = INTERRUPTED) -> Iterator[None]:
    """Exit with one line on a user's mistake; the traceback goes to the log,
    and to the console with ``speechbrain-vq --debug``. ``interrupted`` is the
    message on Ctrl-C."""
    # A file name may be no text, which a stream refuses but stderr.
    with contextlib.suppress(AttributeError):  # Of a notebook's
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\n{interrupted}", err=True)
        sys.exit(INTERRUPTED_CODE)
    except BrokenPipeError:
        # Of `| head`, which click ends quietly.
        raise
    except Exception as error:
        context = click.get_current_context(silent=True)
        debug = context and context.find_root().meta.get("debug")
        message = _as_users_mistake(error)
        if debug or message is None:
            raise
        logger.debug("Traceback of the error:", exc_info=True)
        click.echo(f"Error: {message}", err=True)
        sys.exit(1)


def _as_users_mistake(error: Exception) -> str | None:
    """Describe an error that a user can mend; None for any other."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        # Without its number.
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, KeyError):
        return f"The key {error} is missing; --debug shows where."
    # YAMLError of PyYAML and of ruamel, neither of which is loaded for it.
    names = {cls.__name__ for cls in type(error).__mro__}
    # Of PyTorch, on a GPU and on a CPU: RuntimeErrors both.
    if "OutOfMemoryError" in names or "can't allocate memory" in str(error):
        what = str(error).splitlines()[0].split(": ")[-1].rstrip(".")
        return (
            f"Not enough memory ({what}): take smaller batches, or a smaller "
            "codebook or model."
        )
    if "YAMLError" in names:
        # With the place on lines of their own.
        return one_line(error)
    kinds = ImportError, MemoryError, OSError, ValueError
    if isinstance(error, kinds) or "HubError" in names:
        # Of a worker of a loader, whose message has its traceback.
        _, traceback, rest = str(error).partition("Original Traceback (")
        last = rest.splitlines()[-1].partition(": ")[2] if traceback else ""
        return last or str(error)
    return None


class Verbs(click.Group):
    """Handle the errors of all verbs: suggest one for an unknown verb, refuse
    empty arguments, and end with one line where a user can mend it."""

    def invoke(self, context):
        """Run a verb."""
        with clean_errors():
            return super().invoke(context)

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
        if "--debug" in rest:
            context.find_root().meta["debug"] = True
            rest.remove("--debug")
        return super().resolve_command(context, [verb, *rest])


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Show on a terminal, at once, that a verb has started: the imports within
    take seconds. Ctrl-C ends it at once: a KeyboardInterrupt in the middle of
    an import, such as that of NumPy, becomes other errors."""
    if sys.stderr.isatty():
        click.echo("Loading ...", err=True)
    usual = signal.getsignal(signal.SIGINT)
    # Only the main thread may, and what ignores it goes on to.
    if (
        usual is signal.default_int_handler
        and threading.current_thread() is threading.main_thread()
    ):
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, usual)


def _leave(number, frame):
    """End the process, which has nothing to clean up yet."""
    click.echo(f"\n{INTERRUPTED}", err=True)
    os._exit(INTERRUPTED_CODE)


def open_engine(name: str, model: dict):
    """Return the engine of a name, None for this process, and move the device
    from the options of the model, which is then loaded on a CPU, to it."""
    if name == "process":
        return None
    from speechbrain_vq.inference import RayEngine

    device, model["device"] = model.get("device"), "cpu"
    return RayEngine(device)

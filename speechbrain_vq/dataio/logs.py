"""Keep logs short for a corpus of thousands of files."""

import contextlib
import logging
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def few_warnings(*loggers: logging.Logger, maximum: int = 3) -> Iterator[None]:
    """Context manager that shows the first ``maximum`` warnings of each kind.

    The others are logged at level DEBUG and counted in one line at the end.
    Warnings are of the same kind if they differ only in the arguments of their
    message. It applies to ``loggers`` and to the logger of ``dataio.audio``.

    Example
    -------
    >>> logger = logging.getLogger("preparation")
    >>> with few_warnings(logger):
    ...     for number in range(137):
    ...         logger.warning("Left out %d", number)
    """
    # Count and latest text of warnings, by logger and message.
    kinds: dict[tuple, tuple] = {}
    lock = threading.Lock()

    def limit(record):
        """Return whether to log a record; later ones of a kind become DEBUG."""
        if record.levelno != logging.WARNING:
            return True
        kind = record.name, record.msg
        with lock:
            count = kinds.get(kind, (0, None))[0] + 1
            kinds[kind] = count, record.getMessage()
        if count <= maximum:
            return True
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)

    loggers = {logging.getLogger(f"{__package__}.audio"), *loggers}
    for logger in loggers:
        logger.addFilter(limit)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(limit)
        for (name, _), (count, latest) in kinds.items():
            if count > maximum:
                logging.getLogger(name).warning(
                    "%d more warnings of this kind, which are logged at level "
                    "DEBUG. The last one: %s",
                    *(count - maximum, latest),
                )

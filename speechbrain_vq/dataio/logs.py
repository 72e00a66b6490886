"""Keep logs short where a corpus has thousands of files."""

import contextlib
import logging
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def few_warnings(*loggers: logging.Logger, most: int = 3) -> Iterator[None]:
    """Within it, show the first warnings of each kind; the others are logged at
    level DEBUG, and counted in one line at its end. Of a kind are warnings that
    differ only in the arguments of their message; ``loggers`` are those of the
    warnings, beside that of ``dataio.audio``.

    Example
    -------
    >>> logger = logging.getLogger("preparation")
    >>> with few_warnings(logger):
    ...     for number in range(137):
    ...         logger.warning("Left out %d", number)
    """
    # Number and latest record, by logger and message.
    kinds: dict[tuple, tuple] = {}
    lock = threading.Lock()

    def limit(record):
        if record.levelno != logging.WARNING:
            return True
        kind = record.name, record.msg
        with lock:
            number = kinds.get(kind, (0, None))[0] + 1
            kinds[kind] = number, record.getMessage()
        if number <= most:
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
        for (name, _), (number, latest) in kinds.items():
            if number > most:
                logging.getLogger(name).warning(
                    "%d more warnings of this kind, which are logged at level "
                    "DEBUG. The last of them: %s",
                    *(number - most, latest),
                )

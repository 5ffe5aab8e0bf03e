"""The logger, and what there is to say beside events: about the setup, about hooks that fail.

It speaks in the middle of requests and tasks: whatever structlog does there, it hurts nobody.
"""

import contextlib
import logging
from typing import Any

import structlog

LOGGER = "fastapi_bgx"


def current_logger(wrapper: type[structlog.BoundLoggerBase] | None = None) -> Any:
    """The application's own structlog logger, with the configuration of now.

    With `wrapper`, that class stands in for the one of the configuration.
    """
    try:
        return structlog.wrap_logger(None, None, wrapper, logger_factory_args=(LOGGER,)).bind()
    except TypeError:  # a logger factory that knows no names
        return structlog.wrap_logger(None, None, wrapper).bind()


def notice(level: str, event: str, **fields: Any) -> None:
    """Log something. Where structlog itself raises, the standard library is told, with that."""
    try:
        getattr(current_logger(), level)(event, **fields)
    except Exception:
        with contextlib.suppress(Exception):
            logging.getLogger(LOGGER).exception("%s %r", event, fields)

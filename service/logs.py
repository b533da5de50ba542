"""Logs of both processes, to stderr, a line per record: text for people, JSON for machines.

What a record carries beside its message (``extra=``) is shown too. Nothing that a client sent stands in a log but the
request id that it chose: no prompt, no answer, no key.
"""

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from service.settings import LogFormat

_DECLINED = ("Unsupported upgrade request", "No supported WebSocket library")
"""The web server on whoever asks for another protocol, and is answered in HTTP."""
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


def configure_logging(level: str, form: LogFormat = "text") -> None:
    """Log to stderr from this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out what any stranger can have written as often as he likes, and nobody has to do anything about."""
    return not str(record.msg).startswith(_DECLINED)


class TextLines(logging.Formatter):
    """Time, level, logger, message, then whatever the record carries as ``key=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        """One line, without a traceback."""
        extra = {key: value for key, value in record.__dict__.items() if key not in _STANDARD and value is not None}
        return " ".join([super().formatMessage(record), *(f"{key}={value}" for key, value in extra.items())])


class JsonLines(JsonFormatter):
    """An object per line: time, level, logger, message, and whatever the record carries."""

    def __init__(self) -> None:
        super().__init__(reserved_attrs=sorted(_STANDARD))

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: Mapping[str, Any]) -> None:
        """Our names for what every record has, before what only some have."""
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        super().add_fields(log_data, record, dict(message_dict))

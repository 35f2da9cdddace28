"""Logs: lines for a person on a terminal, JSON otherwise, with device, round and block as fields of their own.

Modules keep to the standard `logging`; structlog (extra `log`) makes the lines for people. Without it they are plain.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import MutableMapping
from datetime import datetime, timezone
from typing import Any, TextIO

_bound: dict[str, Any] = {}
_ROUND = re.compile(r"^round (\d+)\b")
_BLOCK = re.compile(r"\b(?:block|cohort) (\w+)")
PLAIN = "%(asctime)s %(levelname).1s %(name)s %(message)s"


def bind(**values: Any) -> None:
    """Carry these with every line from now on: device, fleet, round."""
    _bound.update(values)


def unbind() -> None:
    """Forget what is carried."""
    _bound.clear()


def configure(level: int = logging.INFO, stream: TextIO | None = None, **values: Any) -> None:
    """Set logging up for this process; `values` are bound. RELIEF_LOG=json or human overrides the terminal."""
    bind(**values)
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(stream))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def _formatter(stream: TextIO) -> logging.Formatter:
    terminal = stream.isatty()
    wanted = os.environ.get("RELIEF_LOG", "human" if terminal else "json")
    if wanted == "json":
        return _Json()
    try:
        import structlog
    except ImportError:
        return logging.Formatter(PLAIN)
    before: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=False),
        _fields,
    ]
    last = structlog.dev.ConsoleRenderer(colors=terminal and "NO_COLOR" not in os.environ)
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=[remove, last])


class _Json(logging.Formatter):
    """One JSON object a line, with structlog's names but without it: it takes 6 MB, a tenth of what a device may."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        line["timestamp"] = datetime.fromtimestamp(record.created, timezone.utc).isoformat().replace("+00:00", "Z")
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(_fields(None, record.levelname, line), default=str)


def _fields(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What is bound, and what the line itself names."""
    text = str(event.get("event", ""))
    if found := _ROUND.match(text):
        event["round"] = int(found[1])
    if found := _BLOCK.search(text):
        event["block"] = found[1]
    for name, value in _bound.items():
        event.setdefault(name, value)
    return event

"""What the processes say on standard error, in one form."""

import json
import logging
from datetime import UTC, datetime

from service.settings import LogFormat, LogSettings


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, for log collectors."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up(settings: LogSettings, process: str) -> None:
    """Let this process, of the service's, log as the settings say."""
    handler = logging.StreamHandler()
    if settings.format is LogFormat.JSON:
        handler.setFormatter(_JsonFormatter(process))
    else:
        told = f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(told))
    logging.basicConfig(level=settings.others, handlers=[handler], force=True)
    logging.getLogger("service").setLevel(settings.level.value)

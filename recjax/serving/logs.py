"""The service's log: text, or a JSON object a line, with the id of the request that a line belongs to."""

import contextvars
import datetime
import json
import logging
import os
import re

# Of the request that is being answered; "" outside of any.
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
_WORD = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


def id_of(sent: bytes) -> str:
    """The id that a client or a proxy sent with a request, or a new one where it sent none that fits into a log."""
    return sent.decode() if _WORD.fullmatch(sent) else os.urandom(8).hex()


class Json(logging.Formatter):
    """One object a line: time, level, message, request_id, and what `extra={"fields": {...}}` adds."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {"time": time.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        line |= {"logger": record.name, "message": record.getMessage()}
        line |= {"request_id": request_id.get()} if request_id.get() else {}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(form: str) -> None:
    """Sends everything that is logged in this process to standard error; `form` is "text" or "json"."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(Json() if form == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)

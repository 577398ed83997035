"""The error log: one event a line on stderr, as key=value, whatever the event says.

    time=2026-11-24T09:00:00.123+00:00 level=error pid=71 logger=adcore.http1 message="…" exception="…"

Under systemd the journal adds time and pid, and reads the level from the prefix <3>. All that an event carries may come
from a request, so it is escaped in one place, `quote`: a line is always the server's own. What is logged again and
again is written RATE_MAX times a second; the last of the others follows with their count (`suppressed=412`), so that
lines and counts add up to the events.
"""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

# Events of one kind (one line of the source) that are written in a second.
RATE_MAX = 10
# Together with the rest less than PIPE_BUF (4096 bytes), so that lines of several processes on one pipe never mix.
MESSAGE_BYTES_MAX = 1200
EXCEPTION_BYTES_MAX = 2500

# syslog's numbers, which journald takes from <N>.
PRIORITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def install() -> None:
    """Make stderr the log of this process: of adcore, of its libraries, of warnings."""
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers[:] = [ErrorLog(journal=is_journal(os.environ, sys.stderr.fileno()))]
    root.setLevel(logging.INFO)


def flush() -> None:
    """Write what was suppressed in seconds that are over. To be called now and then."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def is_journal(environ: Mapping[str, str], fd: int) -> bool:
    """Whether `fd` leads to systemd's journal: JOURNAL_STREAM is its device and inode."""
    status = os.fstat(fd)
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def quote(text: str, bytes_max: int, *, keep_end: bool = False) -> str:
    """`text` in quotes, with escapes for all that is not printable: line breaks of any script, controls, ANSI escapes,
    marks that change the direction of writing. What is longer than `bytes_max` loses its end (or its start)."""
    pieces = text if text.isascii() and text.isprintable() and not {'"', "\\"} & set(text) else map(_escape, text)
    kept: list[str] = []
    for piece in reversed([*pieces]) if keep_end else pieces:
        bytes_max -= len(piece.encode())
        if bytes_max < 0:
            kept.append("…")
            break
        kept.append(piece)
    return '"' + "".join(reversed(kept) if keep_end else kept) + '"'


def _escape(character: str) -> str:
    if character.isprintable():
        return _SHORT.get(character, character)
    code = ord(character)
    return _SHORT.get(character) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


class Kind:
    """What one line of the source logs, in the current second."""

    __slots__ = ("last", "since_monotonic", "suppressed", "written")

    def __init__(self, since_monotonic: float) -> None:
        self.since_monotonic = since_monotonic
        self.written = 0
        self.suppressed = 0
        self.last: logging.LogRecord | None = None
        """The last one that was suppressed."""


class ErrorLog(logging.Handler):
    """Writes events with `write`, which is given a whole line. `clock` gives monotonic seconds."""

    def __init__(
        self,
        write: Callable[[str], object] | None = None,
        *,
        journal: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._write = write or write_stderr
        self._journal = journal
        self._clock = clock
        self._kinds: dict[tuple[str, int], Kind] = {}
        """By source line, so that there are no more than the program has."""

    def emit(self, record: logging.LogRecord) -> None:
        self.flush()
        kind = self._kinds.setdefault((record.pathname, record.lineno), Kind(self._clock()))
        if kind.written < RATE_MAX:
            kind.written += 1
            self._put(record)
        else:
            kind.suppressed += 1
            kind.last = record

    def flush(self) -> None:
        """Write the last of what was suppressed in seconds that are over."""
        self._write_last_of(lambda kind: not 0 <= self._clock() - kind.since_monotonic < 1)

    def close(self) -> None:
        self._write_last_of(lambda kind: True)
        super().close()

    def _write_last_of(self, over: Callable[[Kind], bool]) -> None:
        with self.lock:  # type: ignore[union-attr]  # None only before __init__
            for place, kind in list(self._kinds.items()):
                if over(kind):
                    del self._kinds[place]
                    if kind.last is not None:
                        self._put(kind.last, kind.suppressed - 1)

    def _put(self, record: logging.LogRecord, suppressed: int = 0) -> None:
        try:
            line = self.format_line(record, suppressed)
        except Exception as error:  # a mistake in a call of the log must not end what it reports on
            place = f"{record.pathname}:{record.lineno}"
            line = f"level=error logger=adcore.errorlog message={quote(f'{place}: {error!r}', MESSAGE_BYTES_MAX)}"
        try:
            self._write(line + "\n")
        except OSError:  # stderr is gone, and with it the place to say so
            pass

    def format_line(self, record: logging.LogRecord, suppressed: int = 0) -> str:
        """The line of an event, without its end."""
        level = record.levelname
        fields = [f"level={level.lower()}", f"logger={record.name}"]
        if self._journal:
            fields[0] = f"<{PRIORITIES.get(level, 6)}>{fields[0]}"
        else:
            moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            fields[:1] = [f"time={moment}", fields[0], f"pid={record.process}"]
        fields.append(f"message={quote(record.getMessage(), MESSAGE_BYTES_MAX)}")
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            fields.append(f"exception={quote(text, EXCEPTION_BYTES_MAX, keep_end=True)}")
        if suppressed:
            fields.append(f"suppressed={suppressed}")
        return " ".join(fields)


def write_stderr(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()

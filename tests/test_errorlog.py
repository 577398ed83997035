import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adcore.errorlog import EXCEPTION_BYTES_MAX, MESSAGE_BYTES_MAX, RATE_MAX, ErrorLog, is_journal
from adcore.http1.request import Request
from adcore.http1.response import Response
from tests.http1.fakes import Connection
from tests.process import environment, serving

LINE = re.compile(
    r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 level=[a-z]+ pid=\d+ logger=[\w.]+"
    r' message="(?P<message>(?:[^"\\]|\\.)*)"'
    r'(?: exception="(?P<exception>(?:[^"\\]|\\.)*)")?'
    r"(?: suppressed=(?P<suppressed>\d+))?"
)
HOSTILE = [
    "\n<3>level=error logger=adcore message=forged",
    "\r\ntime=2026-11-24T00:00:00.000+00:00 level=error",
    "\x85next line",
    "\u2028line\u2029paragraph",
    "\x0b\x0c\x1c\x1d\x1e",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b2J",
    "\x00\x08\x7f",
    '" level=critical message="forged',
    "\\",
    '\\" level=critical',
    "\u202egnimoc si tfel",
    "\udc80\udcff",
    "\U000e0001",
    "é \U0001f600",
]


class Events:
    """An ErrorLog with a logger of its own and a clock that the test moves."""

    def __init__(self, journal: bool = False) -> None:
        self.out: list[str] = []
        self.now = 100.0
        self.handler = ErrorLog(self.out.append, journal=journal, clock=lambda: self.now)
        self.log = logging.Logger("adcore.test")
        self.log.addHandler(self.handler)

    @property
    def lines(self) -> list[str]:
        """Each as a reader of lines sees it, whatever it takes for the end of a line."""
        text = "".join(self.out)
        lines = text.splitlines()
        assert lines == text.split("\n")[:-1]
        return lines

    def matches(self) -> list[re.Match[str]]:
        found = [LINE.fullmatch(line) for line in self.lines]
        assert None not in found, self.lines
        return [match for match in found if match]


@pytest.fixture
def events() -> Iterator[Events]:
    events = Events()
    yield events
    events.handler.close()


def test_an_event_is_a_line_of_fields(events: Events) -> None:
    events.log.error("cannot write %s: %s", "/var/log/x", 'no "room"')
    (line,) = events.lines
    assert re.sub(r"time=\S+ level=error pid=\d+ ", "", line) == (
        r'logger=adcore.test message="cannot write /var/log/x: no \"room\""'
    )
    assert LINE.fullmatch(line)


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_what_an_event_says_cannot_forge_a_line(events: Events, hostile: str) -> None:
    events.log.error("the path was %s", hostile)
    try:
        raise ValueError(hostile)
    except ValueError:
        events.log.exception("it failed on %s", hostile)
    plain, failed = events.matches()
    for text in (plain["message"], failed["message"], failed["exception"]):
        assert text.isprintable()
    assert failed["exception"].startswith("Traceback (most recent call last):\\n")
    assert "".join(events.out).encode().decode() == "".join(events.out)


@pytest.mark.parametrize("hostile", [h.encode("latin-1") for h in HOSTILE if max(h) <= "\xff"], ids=ascii)
def test_no_request_can_forge_a_line(hostile: bytes) -> None:
    """Whatever of it llhttp lets through comes back in the worst of ways: in an exception's text."""
    out: list[str] = []

    def handler(request: Request) -> Response:
        said = [request.line.path, *request.headers.values()]
        raise RuntimeError("\n".join(text.decode("latin-1") for text in said))

    handler_of_log = ErrorLog(out.append)
    logger = logging.getLogger("adcore.http1")
    logger.addHandler(handler_of_log)
    try:
        for head in (b"GET /a%b HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: a%bb\r\n\r\n"):
            connection = Connection(handler)
            connection.receive(head % hostile)
    finally:
        logger.removeHandler(handler_of_log)
        handler_of_log.close()
    text = "".join(out)
    assert text.splitlines() == text.split("\n")[:-1]
    assert all(LINE.fullmatch(line) for line in text.splitlines())


def test_a_line_fits_into_a_pipe_in_one_piece(events: Events) -> None:
    try:
        raise ValueError("é" * 10_000 + "the end")
    except ValueError:
        events.log.exception("the start %s", "\x1b" * 10_000)
    (match,) = events.matches()
    assert len(match[0].encode()) < 4096
    assert match["message"].startswith("the start \\x1b")
    assert match["message"].endswith("…")
    assert len(match["message"].encode()) <= MESSAGE_BYTES_MAX + 3
    # Of a traceback the end says what happened.
    assert match["exception"].endswith("éthe end")
    assert len(match["exception"].encode()) <= EXCEPTION_BYTES_MAX + 3


def test_what_is_logged_again_and_again_is_written_ten_times_a_second_and_counted(events: Events) -> None:
    def complain(number: int) -> None:
        events.log.error("source %d is away", number)

    for number in range(1000):
        complain(number)
    events.log.info("another kind")
    assert len(events.lines) == RATE_MAX + 1
    events.now += 1
    complain(1000)
    messages = [match["message"] for match in events.matches()]
    assert messages[RATE_MAX:] == ["another kind", "source 999 is away", "source 1000 is away"]
    for number in range(50):
        complain(number)
    events.handler.close()
    matches = events.matches()
    counts = [int(match["suppressed"] or 0) for match in matches]
    assert sorted(filter(None, counts)) == [50 - RATE_MAX, 1000 - RATE_MAX - 1]
    assert len(matches) + sum(counts) == 1052, "lines and counts add up to the events"


def test_a_quiet_log_still_says_what_it_left_out(events: Events) -> None:
    for _ in range(RATE_MAX + 1):
        events.log.error("once more")
    events.handler.flush()
    assert len(events.lines) == RATE_MAX
    events.now += 1
    events.handler.flush()
    assert len(events.lines) == RATE_MAX + 1
    # The only one that was left out is written, so that nothing is missing.
    assert events.matches()[-1]["suppressed"] is None
    events.now += 1
    events.handler.flush()
    assert len(events.lines) == RATE_MAX + 1


def test_a_clock_that_goes_back_does_not_silence_the_log(events: Events) -> None:
    for _ in range(2 * RATE_MAX):
        events.log.error("once more")
    events.now -= 1000
    events.log.error("after the change")
    assert events.matches()[-1]["message"] == "after the change"
    assert events.matches()[-2]["suppressed"] == str(RATE_MAX - 1)


def test_a_wrong_call_is_reported_and_harms_nobody(events: Events) -> None:
    events.log.error("%d creatives", "many")
    (line,) = events.lines
    assert "test_errorlog.py" in line
    assert "TypeError" in line


def test_a_stderr_that_is_gone_harms_nobody() -> None:
    def write(line: str) -> None:
        raise BrokenPipeError

    handler = ErrorLog(write)
    log = logging.Logger("adcore.test")
    log.addHandler(handler)
    log.error("nobody hears it")
    handler.close()


def test_the_journal_is_given_priorities_instead_of_time_and_pid() -> None:
    events = Events(journal=True)
    events.log.warning("a\nb")
    events.log.info("c")
    events.handler.close()
    assert events.lines == [
        r'<4>level=warning logger=adcore.test message="a\nb"',
        '<6>level=info logger=adcore.test message="c"',
    ]


def test_the_journal_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as file:
        status = os.fstat(file.fileno())
        assert is_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}, file.fileno())
        assert not is_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"}, file.fileno())
        assert not is_journal({}, file.fileno())


def test_a_whole_process_writes_lines_alone(tmp_path: Path) -> None:
    with serving(tmp_path / "state") as server:
        assert server.stop() == 0
    lines = server.errors.splitlines()
    assert [match["message"].split(",")[0] for line in lines if (match := LINE.fullmatch(line))] == [
        "serving the sample inventory",
        f"serving on unix:{tmp_path}/state/ad.sock",
        "TERM: finishing what is under way",
    ]
    assert len(lines) == 3


def test_install_takes_over_warnings_and_the_end_of_the_process_tells_the_rest() -> None:
    program = (
        "import logging, warnings; from adcore import errorlog; errorlog.install(); warnings.warn('old\\x1b thing')\n"
        "for n in range(30): logging.getLogger('x').info('%d', n)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True, timeout=60
    )
    lines = ended.stderr.splitlines()
    assert "level=warning" in lines[0]
    assert "old\\x1b thing" in lines[0]
    assert len(lines) == 1 + RATE_MAX + 1
    assert lines[-1].endswith(f'message="29" suppressed={30 - RATE_MAX - 1}')

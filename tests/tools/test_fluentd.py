"""tools/fluentd: what can be held without fluentd and fluent-bit, which Debian does not have.

That the log can be tailed by inode over renamings, which both do, is shown with rsyslog's imfile: it works the same way
and is no program of ours.
"""

import json
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.process import ROOT, Connection, serving, wait_for
from tests.services import program

FOLDER = ROOT / "tools" / "fluentd"

RSYSLOG_CONF = """\
global(workDirectory="{folder}/work" maxMessageSize="1m")
module(load="imfile" mode="inotify")
input(type="imfile" file="{log}" tag="adcore" ruleset="adcore" addMetadata="off" persistStateInterval="1")
template(name="line" type="string" string="%msg%\\n")
ruleset(name="adcore") {{
    action(type="omfile" file="{folder}/collected" template="line")
}}
"""


class Rsyslog:
    def __init__(self, folder: Path, log: Path) -> None:
        folder.mkdir()
        (folder / "work").mkdir()
        self.collected = folder / "collected"
        self.pid_file = folder / "pid"
        self.errors = folder / "errors"
        (folder / "conf").write_text(RSYSLOG_CONF.format(folder=folder, log=log))
        self.command = [
            *(program("rsyslogd", "rsyslog"), "-n", "-f", str(folder / "conf"), "-i", str(self.pid_file)),
        ]

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.errors.open("ab") as errors:
            process = subprocess.Popen(self.command, stdout=errors, stderr=errors)
        try:
            wait_for(self.pid_file.exists, lambda: self.errors.read_text())
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, self.errors.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def numbers(self) -> Counter[int]:
        """How often it has each kv.n."""
        if not self.collected.exists():
            return Counter()
        whole = self.collected.read_text().rpartition("\n")[0]
        return Counter(int(dict(json.loads(line)["key_values"])["n"]) for line in whole.splitlines())


def test_a_tail_by_inode_has_every_line_once_over_rotations(tmp_path: Path) -> None:
    rotations, each = 5, 300
    with serving(tmp_path / "state", "--log-format", "json") as server:
        rsyslog = Rsyslog(tmp_path / "rsyslog", server.log)
        with rsyslog.running():
            number = 0
            for rotation in range(rotations):
                connection = Connection(server.address)
                for _ in range(each):
                    connection.request("GET", f"/v1/decision?placement=top&kv.n={number}")
                    connection.getresponse().read()
                    number += 1
                    if number % each == each // 2:
                        # In the midst of it: what is waiting goes to the old file, the rest to the new one.
                        server.log.rename(server.log.with_name(f"delivery.log.{rotation + 1}"))
                        server.signal(signal.SIGUSR1)
                connection.close()
                wait_for(lambda: server.status()["log"]["reopens"] == rotation + 1)  # noqa: B023
                wait_for(lambda: len(rsyslog.numbers()) == number)  # noqa: B023
            assert server.stop() == 0
        # Stopped, so that nothing can come any more.
        assert rsyslog.numbers() == Counter(range(rotations * each))


def test_a_tail_that_was_away_goes_on_where_it_was(tmp_path: Path) -> None:
    with serving(tmp_path / "state", "--log-format", "json") as server:
        rsyslog = Rsyslog(tmp_path / "rsyslog", server.log)
        for start in (0, 10, 20):
            for number in range(start, start + 10):
                server.ask(f"/v1/decision?placement=top&kv.n={number}")
            with rsyslog.running():
                wait_for(lambda: len(rsyslog.numbers()) == start + 10)  # noqa: B023
        assert rsyslog.numbers() == Counter(range(30))


# The files


def test_fluentds_file_is_well_formed_and_keeps_what_the_collector_has_not() -> None:
    lines = [line.strip() for line in (FOLDER / "fluentd.conf").read_text().splitlines()]
    lines = [line.partition(" #")[0].strip() for line in lines if line and not line.startswith("#")]
    open_sections: list[str] = []
    settings: dict[str, str] = {}
    for line in lines:
        if opened := re.fullmatch(r"<([a-z]+)(?: [\w.*]+)?>", line):
            open_sections.append(opened[1])
        elif closed := re.fullmatch(r"</([a-z]+)>", line):
            assert open_sections.pop() == closed[1]
        else:
            name, _, value = line.partition(" ")
            key = ".".join([*open_sections, name])
            assert key not in settings
            settings[key] = value
    assert open_sections == []
    assert settings["source.path"].endswith("delivery.log")
    assert settings["source.follow_inodes"] == settings["source.read_from_head"] == "true"
    assert settings["match.require_ack_response"] == settings["match.buffer.retry_forever"] == "true"
    assert settings["match.buffer.@type"] == "file"


def test_fluent_bits_files_are_well_formed_and_fit_together() -> None:
    sections: dict[str, dict[str, str]] = {}
    for name in ("fluent-bit.conf", "fluent-bit-parsers.conf"):
        for line in (FOLDER / name).read_text().splitlines():
            if section := re.fullmatch(r"\[([A-Z]+)\]", line):
                assert section[1] not in sections
                settings = sections[section[1]] = {}
            elif line and not line.lstrip().startswith("#"):
                # A comment at the end of a line would be part of the value.
                setting = re.fullmatch(r"    ([\w.]+) +([^\s#]+(?: [^\s#]+)*)", line)
                assert setting is not None, line
                settings[setting[1]] = setting[2]
    assert sections["INPUT"]["Parser"] == sections["PARSER"]["Name"]
    assert sections["INPUT"]["Tag"] == sections["OUTPUT"]["Match"]
    assert (FOLDER / sections["SERVICE"]["Parsers_File"]).exists()
    assert sections["INPUT"]["storage.type"] == "filesystem"
    assert sections["OUTPUT"]["Retry_Limit"] == "no_limits"

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from adcore.deliverylog.record import FORMS
from tests.process import adctl, environment
from tests.records import click

RECORD = click(ivt=True)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_log_cat_prints_either_form(tmp_path: Path, form: str) -> None:
    path, packed = tmp_path / "delivery.log", tmp_path / "delivery.log.1.gz"
    path.write_bytes(FORMS[form].encode(RECORD) * 2)
    packed.write_bytes(gzip.compress(FORMS[form].encode(RECORD)))
    shown = adctl("log", "cat", str(packed), str(path))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (
        "2027-01-15T08:00:01.500+00:00  click       00000000000000000000000000000001  top           "
        "spring/spring-1  [mobile ios JP 192.0.2.0 ivt]\n" * 3
    )
    as_json = adctl("log", "cat", "--json", str(path))
    assert [json.loads(line)["id"] for line in as_json.stdout.splitlines()] == [RECORD.id] * 2


def test_log_cat_says_where_a_log_is_damaged_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "delivery.log"
    whole = FORMS["msgpack"].encode(RECORD)
    path.write_bytes(whole + whole[:50] + whole + whole[:7])
    shown = adctl("log", "cat", "--json", str(path))
    assert shown.returncode == 1
    assert len(shown.stdout.splitlines()) == 2
    assert shown.stderr.splitlines() == [
        f"adctl log cat: {path}: 50 bytes at {len(whole)} are no record: a record whose checksum does not hold",
        f"adctl log cat: {path}: 7 bytes at {2 * len(whole) + 50} are no record: a torn record",
    ]


def test_log_cat_names_a_file_that_it_cannot_read(tmp_path: Path) -> None:
    missing = adctl("log", "cat", str(tmp_path / "nothing"))
    assert missing.returncode == 2
    assert "nothing: No such file or directory" in missing.stderr
    whole, torn = tmp_path / "whole", tmp_path / "torn.gz"
    whole.write_bytes(FORMS["json"].encode(RECORD))
    torn.write_bytes(gzip.compress(FORMS["json"].encode(RECORD) * 100)[:-20])
    # What can be read is printed, whatever stands around it.
    shown = adctl("log", "cat", "--json", str(torn), str(tmp_path / "nothing"), str(whole))
    assert shown.returncode == 2
    assert len(shown.stdout.splitlines()) > 1
    assert "compressed file is damaged" in shown.stderr
    assert "nothing: No such file" in shown.stderr


def test_log_cat_prints_the_times_of_broken_clocks(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(FORMS["json"].encode(RECORD).replace(b'"time":1800000001.5', b'"time":1e300'))
    assert adctl("log", "cat", str(path)).stdout.startswith("1e+300  click")


def test_log_cat_prints_what_a_pipe_has_so_far() -> None:
    command = [sys.executable, "-m", "adtools", "log", "cat", "-", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        for _ in range(3):
            cat.stdin.write(FORMS["msgpack"].encode(RECORD))
            cat.stdin.flush()
            assert b"spring-1" in cat.stdout.readline()
        cat.stdin.close()
        assert cat.wait(20) == 0


def test_log_cat_reads_standard_input_and_ends_quietly_when_nobody_reads(tmp_path: Path) -> None:
    path = tmp_path / "delivery.log"
    path.write_bytes(FORMS["msgpack"].encode(RECORD) * 20_000)
    with path.open("rb") as file:
        cat = subprocess.Popen(
            [sys.executable, "-m", "adtools", "log", "cat", "-"],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert cat.stdout is not None
        assert cat.stderr is not None
        assert b"spring-1" in cat.stdout.readline()
        cat.stdout.close()
        assert cat.stderr.read() == b""
        cat.stderr.close()
        assert cat.wait(20) == 0

"""perf/README.rst shows what the results beside it say."""

import json
from pathlib import Path
from typing import Any

import pytest

from perf.page import __main__ as page

MACHINE = {"cores": 2, "cpu": "AMD EPYC", "python": "CPython 3.11.2"}


def spread(median: float, low: float, high: float) -> dict[str, float]:
    return {"median": median, "low": low, "high": high}


def at(contender: str, rate: float, cpu_us: float, ratio: dict[str, float], kept_up: bool = True) -> dict[str, Any]:
    return {
        "contender": contender,
        "rate": rate,
        "cpu_us": spread(cpu_us, cpu_us, cpu_us),
        "cpu_ratios": {"nethttp": ratio},
        "latency_us": {"p50": 40.4, "p99": 1200.0, "p99.9": 5000.0, "max": 9000.0},
        "kept_up": kept_up,
    }


MACRO = {
    "date": "2026-11-28T18:00:00+00:00",
    "machine": MACHINE,
    "settings": {"rounds": 2},
    "others_share": {"adcore": 0.4},
    "open": [
        at("adcore", 500.0, 60.0, spread(1.2, 1.1, 1.3)),
        at("adcore", 2000.0, 45.0, spread(0.9, 0.9, 0.9), kept_up=False),
        at("nethttp", 500.0, 50.0, spread(1.0, 1.0, 1.0)),
    ],
}
WANTED = """\
``results/macro-x.json`` (2026-11-28, 2 cores of AMD EPYC, CPython 3.11.2):

===================  =========================  ===========
CPU µs per request   500/s                      2,000/s
===================  =========================  ===========
adcore, unix socket  60.0 (1.20; 1.10 to 1.30)  45.0 (0.90)
Go net/http          50.0                       -
===================  =========================  ===========
"""
PAGE = "Before.\n\n.. begin macro\n\n{}.. end macro\n\nBehind.\n"


@pytest.mark.parametrize("before", ["Old.\n\n", ""])
def test_a_result_takes_the_place_of_the_one_before(tmp_path: Path, before: str) -> None:
    path = tmp_path / "macro-x.json"
    path.write_text(json.dumps(MACRO))
    there = tmp_path / "README.rst"
    there.write_text(PAGE.format(before))
    for _ in range(2):  # the second time nothing changes
        assert page.main(["--page", str(there), str(path)]) == 0
        text = there.read_text()
        assert text.startswith("Before.\n\n.. begin macro\n\n" + WANTED)
        assert text.endswith("\n\n.. end macro\n\nBehind.\n")
        assert "Old." not in text
        assert "40 / 1,200 / 5,000" in text
        assert "falls behind" in text
        assert "Other programs took up to 40% of the contenders' core" in text
        assert page.named_results(text) == ["macro-x.json"]


@pytest.mark.parametrize(
    ("name", "content", "there", "problem"),
    [
        ("results.json", "{}", PAGE, "not called macro, changing, idle-DATE-COMMIT.json"),
        ("macro-x.json", "{}", PAGE, "is no result of perf/run"),
        ("macro-x.json", "x", PAGE, "is no result of perf/run"),
        ("idle-x.json", "{}", PAGE, "no two lines `.. begin idle` and `.. end idle`"),
    ],
)
def test_what_cannot_be_written_is_named_and_the_page_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, there: str, problem: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    target = tmp_path / "README.rst"
    target.write_text(there)
    assert page.main(["--page", str(target), str(path)]) == 1
    assert problem in capsys.readouterr().err
    assert target.read_text() == there


def test_the_page_says_what_the_results_say() -> None:
    text = page.PAGE.read_text()
    names = page.named_results(text)
    assert {name.partition("-")[0] for name in names} == {"macro", "changing", "idle"}
    for name in names:
        assert page.replaced(text, page.RESULTS / name) == text, f"perf/run page perf/results/{name}"

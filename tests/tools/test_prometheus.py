"""tools/prometheus and tools/grafana: Prometheus' own tool reads them, and they ask for metrics that there are."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.inventories import campaign, document
from tests.process import ROOT, adctl, ask, serving
from tests.services import program

FOLDER = ROOT / "tools" / "prometheus"
# What a metric's name can be in an expression; histogram series and recorded rules among them.
NAME = re.compile(r"\b(?:adcore|process|python)[_:][a-z0-9_:]+")


@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "adcore.rules.yml"),
        ("test", "rules", "adcore.rules.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [program("promtool", "prometheus"), *command],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_every_alert_is_tested() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", (FOLDER / "adcore.rules.yml").read_text()))
    fired = re.findall(r"alertname: (\w+)\n +exp_alerts:", (FOLDER / "adcore.rules.test.yml").read_text())
    assert alerts == set(fired)


def dashboard() -> Any:
    return json.loads((ROOT / "tools" / "grafana" / "adcore.json").read_text())


def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    variables = [variable["query"] for variable in dashboard()["templating"]["list"] if variable["type"] == "query"]
    rules = re.findall(r"expr: (.*(?:\n {10}.*)*)", (FOLDER / "adcore.rules.yml").read_text())
    return [*panels, *variables, *rules]


def test_rules_and_dashboard_ask_only_for_metrics_that_there_are(tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path}/ads.db"
    ads = document(campaign("a"), campaign("b", targeting={"countries": ["JP"]}))
    assert adctl("apply", "--source", source, "-", stdin=json.dumps(ads)).returncode == 0
    with serving(tmp_path / "state", "--source", source) as server:
        server.ask("/v1/decision?placement=side")
        server.ask("/v1/decision?placement=top")
        text = ask(server.control, "/metrics").body.decode()
        server.stop()
    there = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    recorded = set(re.findall(r"- record: (\S+)", (FOLDER / "adcore.rules.yml").read_text()))
    of_the_parent = {"adcore_worker_up"}  # tests/control holds that it is there with several workers
    asked = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(asked) > 20
    assert asked - there - recorded - of_the_parent == set()


def test_the_dashboards_panels_lie_beside_each_other() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_the_dashboards_expressions_are_promql(tmp_path: Path) -> None:
    """promtool reads rules, so each expression is made one, with Grafana's variables filled in."""
    filled = [
        target["expr"].replace("$__rate_interval", "5m").replace("$job", "adcore").replace("$instance", ".*")
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    ]
    rules = [{"record": f"panel:{place}", "expr": expression} for place, expression in enumerate(filled)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    done = subprocess.run(
        [program("promtool", "prometheus"), "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert f"SUCCESS: {len(rules)} rules found" in done.stdout, done.stderr

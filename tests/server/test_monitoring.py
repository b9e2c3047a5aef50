"""What deploy/monitoring gives to Prometheus and Grafana is valid, and asks for what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_service import RunningApi
from monitoring import MONITORING, dashboard_queries, substitute
from support import ROOT, RunningServer, ask_grpc, samples

RULES = MONITORING / "rules.yaml"
FOREIGN = {"up", "probe_ssl_earliest_cert_expiry"}  # Prometheus', blackbox_exporter's
_METRIC = re.compile(r"\b(?:(?:yolov5|nv|probe)[_:][a-z0-9_:]+|up)\b(?=[{ \[)]|$)")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (package prometheus)"
)


def promtool(*arguments: str | Path) -> str:
    """Run promtool; return what it says. It must find no fault."""
    found = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=280
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels() -> list[dict[str, Any]]:
    found = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def metrics_of(address: str) -> Iterator[str]:
    """The names of all series that this address may have, by the types that it declares."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        yield from (f"{name}{part}" for part in parts)


@needs_promtool
def test_rules_and_configuration_are_valid() -> None:
    promtool("check", "rules", RULES)
    promtool("check", "config", MONITORING / "prometheus.yml")


@needs_promtool
def test_each_alert_fires_and_resolves() -> None:
    promtool("test", "rules", MONITORING / "rules_test.yaml")


def test_each_alert_is_tested() -> None:
    tested = (MONITORING / "rules_test.yaml").read_text()
    firing = {*re.findall(r'alertname="(\w+)",alertstate="firing"', tested)}
    assert firing >= {one["alert"] for one in alerts()}


def test_each_alert_says_what_it_is_and_where_to_read_on() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.M)
    assert [name for name in headings if name.startswith("Yolov5")] == [
        one["alert"] for one in alerts()
    ]
    for one in alerts():
        assert one["labels"]["severity"] in ("page", "ticket")
        assert one["annotations"]["runbook"] == f"docs/operations.md#{one['alert'].lower()}"
        assert {*one["annotations"]} == {"summary", "description", "runbook"}


def test_each_metric_that_is_asked_for_exists(server: RunningServer, api: RunningApi) -> None:
    ask_grpc(server.grpc, [next((ROOT / "examples/bccd/photos").iterdir()).read_bytes()])
    addresses = (server.metrics, f"{server.health}/metrics", f"{api.url}/metrics")
    known = {name for address in addresses for name in metrics_of(address)} | FOREIGN
    known |= {rule["record"] for rule in rules() if "record" in rule}
    queries = [rule["expr"] for rule in rules()] + [*dashboard_queries()]
    asked = {name for query in queries for name in _METRIC.findall(query)}
    assert len(asked) > 40
    assert asked - known == set()


def test_outcomes_and_the_bound_of_a_slow_answer_exist(server: RunningServer) -> None:
    told = {one.labels["outcome"] for one in samples(server.metrics, "yolov5_requests_total")}
    assert told == {"answered", "rejected", "shed", "expired", "failed", "lost"}
    buckets = samples(server.metrics, "yolov5_request_seconds_bucket", outcome="answered")
    assert 1.0 in {float(one.labels["le"]) for one in buckets}


def test_each_panel_has_a_title_a_description_and_a_unit() -> None:
    assert len(panels()) > 30
    assert len({panel["title"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"] and panel["datasource"]["uid"] == "${datasource}", panel["title"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        at = panel["gridPos"]
        fields = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24 and not fields & taken, panel["title"]
        taken |= fields


@needs_promtool
def test_each_query_of_the_dashboard_can_be_parsed(tmp_path: Path) -> None:
    queries = [substitute(query) for query in dashboard_queries()]
    assert not any("$" in query for query in queries)
    records = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", path)

"""The files for Prometheus and Grafana name only what exists: metrics, labels, files, alerts.

Nothing here starts them (they need Docker): expressions are parsed by Prometheus's own grammar, and every
name in them is looked up in the code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import promql_parser as promql
import pytest
import yaml

import device_agent.metrics
import server_worker.metrics
from broker.protocol import messages as m
from deploy.stack.daemons import Daemon
from deploy.stack.workers import METRICS_PORT, metrics_port
from server_worker.store import Store
from spliteasy import errors
from spliteasy.errors import UserError
from spliteasy.observability.meter import Metric

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana/dashboards/spliteasy.json"
ALERTS = DEPLOY / "prometheus/alerts.yaml"
OPERATIONS = (ROOT / "docs/operations.md").read_text()
METRICS = (*server_worker.metrics.ALL, *device_agent.metrics.ALL)
TARGET_LABELS = {"job", "instance"}
"""Prometheus gives every series these."""
FOREIGN = {"up", "process_resident_memory_bytes"}


def series() -> dict[str, set[str]]:
    """The labels of every series that workers and agents give, by its name."""
    known = {name: set(TARGET_LABELS) for name in FOREIGN}
    for metric in METRICS:
        labels = {*metric.labels, *TARGET_LABELS}
        if metric.kind == "histogram":
            known[f"{metric.name}_bucket"] = {*labels, "le"}
            known[f"{metric.name}_sum"] = known[f"{metric.name}_count"] = labels
        else:
            known[metric.name] = labels
    return known


def selectors(expression: Any) -> Iterator[Any]:
    """The vector selectors in a parsed expression."""
    match expression:
        case promql.VectorSelector():
            yield expression
        case promql.MatrixSelector():
            yield expression.vector_selector
        case promql.BinaryExpr():
            yield from selectors(expression.lhs)
            yield from selectors(expression.rhs)
        case promql.Call():
            for argument in expression.args:
                yield from selectors(argument)
        case promql.AggregateExpr() | promql.ParenExpr():
            yield from selectors(expression.expr)
        case promql.NumberLiteral():
            return
        case _:
            raise AssertionError(f"an expression of a kind that this test doesn't read: {expression!r}")


def parsed(expression: str) -> Any:
    """Parse by Prometheus's grammar, which knows no variables of Grafana's."""
    return promql.parse(expression.replace("$__rate_interval", "1m"))


def wrong_names(expression: str) -> list[str]:
    """Return the names that an expression has and the code has not."""
    known, wrong = series(), []
    allowed: set[str] = set()
    for selector in selectors(parsed(expression)):
        labels = known.get(selector.name)
        if labels is None:
            wrong.append(selector.name)
            continue
        allowed |= labels
        wrong += [matcher.name for matcher in selector.matchers.matchers if matcher.name not in labels]
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
    return [*wrong, *sorted(grouped - allowed)]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def targets() -> list[dict[str, str]]:
    """The queries of the dashboard's panels."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target for panel in panels for target in panel.get("targets", ())]


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("sum(rate(spliteasy_worker_steps_total[5m]))", []),
        ("sum(rate(spliteasy_worker_stepz_total[5m]))", ["spliteasy_worker_stepz_total"]),
        ("spliteasy_worker_queue_seconds", ["spliteasy_worker_queue_seconds"]),
        ('spliteasy_worker_busy_total{code="x"}', ["code"]),
        ("sum by (kind) (spliteasy_worker_busy_total)", ["kind"]),
    ],
)
def test_a_wrong_name_is_found(expression: str, wrong: list[str]) -> None:
    assert wrong_names(expression) == wrong


def test_alerts_name_only_what_exists() -> None:
    assert len(alerts()) > 10
    assert {rule["alert"]: wrong_names(rule["expr"]) for rule in alerts() if wrong_names(rule["expr"])} == {}


def test_alerts_ask_for_outcomes_and_codes_that_there_are() -> None:
    text = ALERTS.read_text()
    codes = re.findall(r'code="([^"]*)"', text)
    calls = re.findall(r'call="([^"]*)"', text)
    outcomes = [name for names in re.findall(r'outcome=~"([^"]*)"', text) for name in names.split("|")]
    assert codes
    assert calls
    assert outcomes
    assert set(codes) <= set(get_args(m.ErrorCode))
    assert all(callable(getattr(Store, call)) for call in calls)
    assert all(issubclass(getattr(errors, outcome), errors.StoreError) for outcome in outcomes)


def test_the_dashboard_names_only_what_exists() -> None:
    assert len(targets()) > 30
    known = series()
    for target in targets():
        expression = target["expr"]
        assert wrong_names(expression) == [], expression
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert all(shown <= known[selector.name] for selector in selectors(parsed(expression))), expression


def test_the_dashboard_shows_every_metric() -> None:
    text = DASHBOARD.read_text()
    assert [metric.name for metric in METRICS if metric.name not in text] == []


def test_panels_do_not_lie_on_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_metric_stands_in_the_manual_as_it_is() -> None:
    assert [row(metric) for metric in METRICS if row(metric) not in OPERATIONS] == []
    named = set(re.findall(r"spliteasy_(?:worker|agent)_\w+", OPERATIONS))
    assert named <= {metric.name for metric in METRICS}


def row(metric: Metric) -> str:
    """The metric's row in the manual's table."""
    labels = ", ".join(metric.labels) or "–"
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |\n"


def test_every_alert_is_explained_and_nothing_else() -> None:
    explained = re.findall(r"^### (SplitEasy\w+)$", OPERATIONS, re.MULTILINE)
    assert explained == [rule["alert"] for rule in alerts()]
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in alerts())


def test_files_that_are_mounted_and_named_are_there() -> None:
    services = yaml.safe_load((DEPLOY / "watch.yaml").read_text())["services"]
    for service in services.values():
        tag = service["image"].partition(":")[2]
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), "an image is pinned"
        for source in (volume.partition(":")[0] for volume in service["volumes"]):
            assert not source.startswith(".") or (DEPLOY / source).is_dir(), source
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())
    files = [*config["rule_files"]]
    for scrape in config["scrape_configs"]:
        files += scrape["file_sd_configs"][0]["files"]
        assert scrape["job_name"] in DASHBOARD.read_text() + ALERTS.read_text()
    assert all((DEPLOY / "prometheus" / file).is_file() for file in files)
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).name == DASHBOARD.name
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    used = {target["datasource"]["uid"] for target in targets()}  # type: ignore[index]
    assert used == {source["datasources"][0]["uid"]}
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert source["datasources"][0]["url"] == "http://127.0.0.1:9090"


def test_each_worker_of_the_local_stack_has_a_port_that_is_scraped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(METRICS_PORT, raising=False)
    assert metrics_port(Daemon("worker-1", tmp_path)) == {}
    monkeypatch.setenv(METRICS_PORT, "9464")
    ports = [metrics_port(Daemon(f"worker-{n}", tmp_path))[METRICS_PORT] for n in (1, 2)]
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus/targets/workers.yaml").read_text())
    assert scraped["targets"] == [f"127.0.0.1:{port}" for port in ports]
    monkeypatch.setenv(METRICS_PORT, "none")
    with pytest.raises(UserError, match="is no port"):
        metrics_port(Daemon("worker-1", tmp_path))

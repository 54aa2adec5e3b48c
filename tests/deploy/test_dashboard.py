"""What the dashboard and the alerts ask Prometheus for exists in `service.metrics`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from ruamel.yaml import YAML

from service.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}
MADE_BY_PROMETHEUS = {"up"}


def read_yaml(*path: str) -> Any:
    return YAML(typ="safe").load(DEPLOY.joinpath(*path))


DASHBOARD: dict[str, Any] = json.loads(
    DEPLOY.joinpath("grafana", "dashboards", "headwater.json").read_text(encoding="utf-8")
)
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = DASHBOARD["templating"]["list"]
RULES = [
    rule for group in read_yaml("prometheus", "rules.yml")["groups"] for rule in group["rules"]
]


def with_values(expression: str) -> str:
    """Grafana's own variables as values of the kind that it puts there."""
    return re.sub(r"\$__(rate_interval|range|interval)", "1m", expression)


def asked() -> Iterator[Any]:
    for rule in RULES:
        yield pytest.param(rule["expr"], id=rule["alert"])
    for panel in PANELS:
        for target in panel["targets"]:
            name = f"{panel['title']} {target['refId']}"
            yield pytest.param(with_values(target["expr"]), id=name)
    for variable in VARIABLES:
        series = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"]["query"])
        assert series
        yield pytest.param(series[1], id=f"variable {variable['name']}")


def metrics_in(expression: str) -> set[str | None]:
    """Names of all selectors; None for one without a name."""
    names: set[str | None] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return names


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    families = Metrics().registry.collect()
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


@pytest.mark.parametrize("expression", list(asked()))
def test_every_metric_that_is_asked_for_exists(expression: str, exposed: set[str]) -> None:
    names = metrics_in(expression)
    assert names
    assert names <= exposed | MADE_BY_PROMETHEUS


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("rate(a_total[1m]) / on(x) b", {"a_total", "b"}),
        ("avg_over_time(max(a)[1h:1m]) unless (-b offset 1h > 2)", {"a", "b"}),
        ("histogram_quantile(0.9, sum by (le) (rate(a_bucket[1m])))", {"a_bucket"}),
        ('{job="headwater"}', {None}),
    ],
)
def test_no_selector_is_overlooked(expression: str, names: set[str | None]) -> None:
    assert metrics_in(expression) == names


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_has_a_description_and_a_unit(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


def test_everything_reads_the_provisioned_datasource() -> None:
    (source,) = read_yaml("grafana", "provisioning", "datasources", "prometheus.yml")["datasources"]
    readers = [*PANELS, *VARIABLES, *(target for panel in PANELS for target in panel["targets"])]
    assert {(reader["datasource"]["uid"], reader["datasource"]["type"]) for reader in readers} == {
        (source["uid"], source["type"])
    }


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["annotations"].keys() == {"summary", "action"}
    assert rule["labels"]["severity"] in {"warning", "critical"}


def test_every_alert_has_a_test_of_its_own() -> None:
    tests = DEPLOY.joinpath("prometheus", "rules_test.yml").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in RULES if rule["alert"] not in tests] == []

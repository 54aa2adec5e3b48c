"""Metric names, units and labels, by https://prometheus.io/docs/practices/naming/."""

import re
from collections.abc import Iterator

import pytest
from prometheus_client import Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics


def _own(metrics: Metrics) -> Iterator[MetricWrapperBase]:
    for each in vars(metrics).values():
        if isinstance(each, MetricWrapperBase):
            yield each


_METRICS = {metric._name: metric for metric in _own(Metrics())}
each_metric = pytest.mark.parametrize("metric", _METRICS.values(), ids=_METRICS)


@each_metric
def test_every_metric_says_what_it_means(metric: MetricWrapperBase) -> None:
    assert re.fullmatch(r"[A-Z0-9].{5,}\.", metric._documentation)


@each_metric
def test_every_name_is_ours_and_plain(metric: MetricWrapperBase) -> None:
    assert re.fullmatch(r"headwater_[a-z0-9]+(_[a-z0-9]+)*", metric._name)
    assert not re.search(r"_(counter|gauge|histogram|total|count|sum|bucket|info)$", metric._name)


@each_metric
def test_units_are_base_units_spelled_out(metric: MetricWrapperBase) -> None:
    words = metric._name.split("_")
    assert not {"ms", "us", "ns", "s", "sec", "secs", "second", "millis"} & set(words)
    assert not {"milliseconds", "microseconds", "minutes", "hours", "kb", "mb"} & set(words)
    assert not {"percent", "pct"} & set(words)
    if "seconds" in words:
        assert words[-1] == "seconds"


@each_metric
def test_a_histogram_is_named_for_what_its_buckets_count(metric: MetricWrapperBase) -> None:
    if isinstance(metric, Histogram):
        assert metric._name.endswith(("_seconds", "_events"))


@each_metric
def test_no_label_names_a_user_an_item_or_an_event(metric: MetricWrapperBase) -> None:
    allowed = {"outcome", "reason", "partition", "role", "result", "model", "verdict"}
    assert set(metric._labelnames) <= allowed


def test_every_metric_is_one_of_three_kinds_and_registered_once() -> None:
    metrics = Metrics()
    own = list(_own(metrics))
    assert all(isinstance(metric, Counter | Gauge | Histogram) for metric in own)
    names = [metric._name for metric in own]
    assert len(names) == len(set(names)) >= 40


def test_two_sets_do_not_share_anything() -> None:
    first, second = Metrics(), Metrics()
    first.swaps.labels(result="served").inc()
    assert "headwater_swaps_total{" in generate_latest(first.registry).decode()
    assert "headwater_swaps_total{" not in generate_latest(second.registry).decode()


def test_what_is_exposed_can_be_parsed_and_carries_help() -> None:
    metrics = Metrics()
    metrics.events.labels(outcome="scored").inc(3)
    metrics.score_seconds.observe(0.004)
    exposed = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    ours = {family.name: family for family in exposed if family.name.startswith("headwater_")}
    assert ours["headwater_events"].samples[0].value == 3
    assert ours["headwater_score_seconds"].type == "histogram"
    assert all(family.documentation for family in ours.values())
    assert any(family.name == "process_start_time_seconds" for family in exposed)

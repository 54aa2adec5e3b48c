"""The admin port over real HTTP."""

import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.admin.server import AdminServer, Health
from service.errors import ConfigurationError
from service.metrics import Metrics
from service.settings import AdminSettings


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    body: str


@dataclass(frozen=True, slots=True)
class Admin:
    server: AdminServer
    metrics: Metrics
    health: Health

    def get(self, path: str, accept: str = "*/*") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Accept": accept})
            response = connection.getresponse()
            return Answer(
                response.status, response.headers["Content-Type"], response.read().decode()
            )
        finally:
            connection.close()


@pytest.fixture
def admin() -> Iterator[Admin]:
    health, metrics = Health(live_within_s=20), Metrics()
    server = AdminServer(AdminSettings(port=0), metrics, health)
    server.start()
    yield Admin(server, metrics, health)
    server.stop()


class TestMetrics:
    def test_the_page_shows_what_was_counted(self, admin: Admin) -> None:
        admin.metrics.events.labels("scored").inc(3)
        page = admin.get("/metrics?x=1")
        assert page.status == 200
        families = {each.name: each for each in text_string_to_metric_families(page.body)}
        assert families["headwater_events"].samples[0].value == 3

    def test_it_speaks_openmetrics_to_who_asks_for_it(self, admin: Admin) -> None:
        assert admin.get("/metrics").content_type.startswith("text/plain")
        openmetrics = admin.get("/metrics", "application/openmetrics-text; version=1.0.0")
        assert openmetrics.content_type.startswith("application/openmetrics-text")
        assert openmetrics.body.endswith("# EOF\n")

    def test_creation_times_do_not_double_the_page(self, admin: Admin) -> None:
        admin.metrics.events.labels("scored").inc()
        assert "headwater_events_created" not in admin.get("/metrics").body


class TestReadiness:
    def test_it_says_what_is_awaited_until_every_stage_is_ready(self, admin: Admin) -> None:
        assert admin.get("/readyz") == Answer(503, "text/plain; charset=utf-8", "starting\n")
        admin.health.not_ready("assignment", "no partition is assigned yet")
        admin.health.ready("start")
        assert admin.get("/readyz").body == "no partition is assigned yet\n"
        admin.health.ready("assignment")
        assert admin.get("/readyz") == Answer(200, "text/plain; charset=utf-8", "ready\n")

    def test_a_stage_may_stop_being_ready(self, admin: Admin) -> None:
        admin.health.ready("start")
        admin.health.not_ready("stop", "stopping")
        assert admin.get("/readyz").status == 503

    def test_a_service_that_is_not_ready_still_lives(self, admin: Admin) -> None:
        assert admin.get("/livez") == Answer(200, "text/plain; charset=utf-8", "live\n")


class TestLiveness:
    @pytest.fixture
    def pass_time(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        now_s = 1_000.0
        monkeypatch.setattr("service.admin.server.time.monotonic", lambda: now_s)

        def forward(seconds: float) -> None:
            nonlocal now_s
            now_s += seconds

        return forward

    def test_a_loop_that_stopped_beating_is_told_with_its_time(
        self, pass_time: Callable[[float], None]
    ) -> None:
        health = Health(live_within_s=20)
        pass_time(20)
        assert health.live_answer() == (True, "live")
        pass_time(1)
        assert health.live_answer() == (False, "the event loop has not run for 21 s")

    def test_a_beat_makes_it_live_again(self, pass_time: Callable[[float], None]) -> None:
        health = Health(live_within_s=20)
        pass_time(100)
        health.beat()
        assert health.live_answer() == (True, "live")


class TestPort:
    def test_an_unknown_path_names_those_that_exist(self, admin: Admin) -> None:
        answer = admin.get("/nothing")
        assert (answer.status, answer.body) == (404, "try /metrics, /livez or /readyz\n")

    def test_a_taken_port_is_a_setting_to_correct(self, admin: Admin) -> None:
        settings = AdminSettings(port=admin.server.port)
        with pytest.raises(ConfigurationError, match=r"set admin\.port to a free port"):
            AdminServer(settings, Metrics(), Health(1)).start()

    def test_it_is_free_again_after_a_stop(self) -> None:
        first = AdminServer(AdminSettings(port=0), Metrics(), Health(1))
        first.start()
        port = first.port
        first.stop()
        second = AdminServer(AdminSettings(port=port), Metrics(), Health(1))
        second.start()
        second.stop()

    def test_one_that_was_never_started_can_be_stopped(self) -> None:
        AdminServer(AdminSettings(), Metrics(), Health(1)).stop()

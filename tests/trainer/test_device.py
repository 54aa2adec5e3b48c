from collections.abc import Iterator

import pytest
import torch

from service.errors import ConfigurationError
from service.settings import Device
from service.trainer.device import choose_device, choose_threads, has_fast_bf16
from tests.trainer.examples import CPU


@pytest.fixture
def _forgets_what_the_cpu_can() -> Iterator[None]:
    has_fast_bf16.cache_clear()
    yield
    has_fast_bf16.cache_clear()


@pytest.mark.parametrize(
    ("wanted", "available", "chosen"),
    [
        (Device.AUTO, True, "cuda"),
        (Device.AUTO, False, "cpu"),
        (Device.CPU, True, "cpu"),
        (Device.CUDA, True, "cuda"),
    ],
)
def test_auto_prefers_cuda_where_there_is_one(
    wanted: Device, available: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(wanted).type == chosen


def test_cuda_that_is_wanted_but_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        choose_device(Device.CUDA)


@pytest.mark.usefixtures("_forgets_what_the_cpu_can")
@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({}, False),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_a_cpu_is_fast_in_bfloat16_only_with_instructions_for_it(
    capabilities: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_fast_bf16(CPU) is fast


def test_threads_are_half_the_cores_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert (choose_threads(0), choose_threads(3)) == (4, 3)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert choose_threads(0) == 1

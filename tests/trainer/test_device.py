import pytest
import torch

from service.errors import ConfigurationError
from service.settings import Device
from service.trainer.device import choose_device, choose_threads


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


def test_threads_are_half_the_cores_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert (choose_threads(0), choose_threads(3)) == (4, 3)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert choose_threads(0) == 1

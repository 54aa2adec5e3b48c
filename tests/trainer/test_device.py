"""Where the worker computes: CUDA where there is one, unless the user says otherwise."""

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
def test_auto_is_cuda_where_there_is_one(
    wanted: Device, available: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(wanted) == torch.device(chosen)


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=r"trainer\.device"):
        choose_device(Device.CUDA)


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (1, 1), (2, 1), (16, 8)])
def test_no_number_of_threads_is_half_the_cores(
    cores: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert choose_threads(0) == threads
    assert choose_threads(3) == 3

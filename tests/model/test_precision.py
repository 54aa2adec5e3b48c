from collections.abc import Iterator

import pytest
import torch

from service.model.precision import all_finite, has_fast_bf16


@pytest.fixture
def _forgets_what_the_cpu_can() -> Iterator[None]:
    has_fast_bf16.cache_clear()
    yield
    has_fast_bf16.cache_clear()


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
    assert has_fast_bf16(torch.device("cpu")) is fast


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bad_element_anywhere_is_found(bad: float, dtype: torch.dtype) -> None:
    tensor = torch.randn(301, 7).to(dtype)
    assert all_finite(tensor)
    for at in (0, 1000, -1):
        broken = tensor.clone()
        broken.flatten()[at] = bad
        assert not all_finite(broken)


def test_of_nothing_all_is_finite() -> None:
    assert all_finite(torch.zeros(0, 4))

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model.temperature import temperature_for


@pytest.mark.parametrize(
    ("items", "temperature"),
    [(0, 0.3), (1, 0.3), (50, 0.3), (1_682, 0.193), (10_000, 0.125), (30_000, 0.1), (10**6, 0.1)],
)
def test_few_items_are_told_apart_less_sharply(items: int, temperature: float) -> None:
    assert temperature_for(items, 0.1) == pytest.approx(temperature, rel=0.01)


@given(st.integers(0, 10**7), st.integers(1, 10**5), st.floats(0.01, 1.0))
def test_never_rises_with_the_catalogue(items: int, more: int, setting: float) -> None:
    now, later = temperature_for(items, setting), temperature_for(items + more, setting)
    assert setting <= later <= now <= 3 * setting

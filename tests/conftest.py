"""What holds for every test."""

import sys

import hypothesis
import pytest

# Machines are shared: how long an example takes says nothing.
hypothesis.settings.register_profile(
    "shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared")


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    """Tiny models are slower on several threads, and two test runs may share a machine."""
    torch = sys.modules.get("torch")  # a run without model tests need not import it
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_torch_seed() -> None:
    """What a test trains does not depend on which tests came before it: their order is random."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(1)

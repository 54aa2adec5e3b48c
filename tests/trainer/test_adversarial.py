import pytest
import torch

from service.model.losses import sampled_softmax
from service.settings import AdversarialSettings
from service.trainer import step as step_module
from service.trainer.adversarial import shifted
from service.trainer.step import train_step
from tests.trainer.examples import a_challenger, packed, small_settings

SETTINGS = small_settings()
BATCH = packed([1, 2, 3, 4], [5, 6, 7, 8, 9])


def test_each_vector_moves_by_epsilon_up_its_gradient() -> None:
    vectors = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]], requires_grad=True)
    (vectors * torch.tensor([[0.0, 2.0], [-0.1, 0.0], [0.0, 0.0]])).sum().backward()
    moved = shifted(vectors, 0.5)
    torch.testing.assert_close(moved, torch.tensor([[3.0, 0.5], [-0.5, 1.0], [1.0, 1.0]]))
    # The shift itself is no function of them.
    (gradient,) = torch.autograd.grad(shifted(vectors, 0.5).sum(), vectors)
    assert torch.equal(gradient, torch.ones(3, 2))


def taught(epsilon: float, weight: float = 1.0, steps: int = 30) -> tuple[float, float]:
    """The last loss, and the most that a shift of 0.3 adds to it."""
    torch.manual_seed(0)
    challenger = a_challenger(SETTINGS, items=9)
    settings = SETTINGS.trainer.model_copy(
        update={"adversarial": AdversarialSettings(epsilon=epsilon, weight=weight)}
    )
    losses: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "has_fast_bf16", lambda _: False)
        for _ in range(steps):
            losses.append(train_step(challenger, BATCH, temperature=0.1, settings=settings))
        seen: list[float] = []

        def record(*given: torch.Tensor, **named: float) -> torch.Tensor:
            loss = sampled_softmax(*given, **named)  # type: ignore[arg-type]
            seen.append(float(loss.detach()))
            return loss

        patch.setattr(step_module, "sampled_softmax", record)
        probing = settings.model_copy(update={"adversarial": AdversarialSettings(epsilon=0.3)})
        train_step(challenger, BATCH, temperature=0.1, settings=probing)
    clean, harder = seen
    return losses[-1], harder - clean


def test_what_was_trained_with_shifts_loses_less_to_one() -> None:
    (plain, plain_lost), (loss, lost) = taught(0.0), taught(0.3)
    assert loss < 1.0  # it learns all the same
    assert plain < 1.0
    assert 0 < lost < 0.8 * plain_lost


def test_at_a_small_weight_it_hardly_changes_anything() -> None:
    assert taught(0.3, weight=1e-6, steps=3)[0] == pytest.approx(taught(0.0, steps=3)[0], rel=1e-3)

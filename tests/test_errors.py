"""The tree of errors: what is raised on purpose has one root, and is drawn."""

import inspect

import pytest

from service import errors
from service.errors import DeadLetterReason, HeadwaterError, InvalidEventError

_TREE = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, Exception) and each is not HeadwaterError
]


@pytest.mark.parametrize("error", _TREE, ids=lambda error: error.__name__)
def test_every_error_has_the_one_root_and_is_drawn_in_the_tree(error: type[Exception]) -> None:
    assert issubclass(error, HeadwaterError)
    assert f"── {error.__name__} " in (errors.__doc__ or "")


def test_a_dead_letter_carries_its_reason_and_detail() -> None:
    error = InvalidEventError(DeadLetterReason.INVALID, "user_id: Field required")
    assert (error.reason, str(error)) == ("invalid", "user_id: Field required")

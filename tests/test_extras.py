import pytest

from service.errors import ConfigurationError
from service.extras import require_packages


def test_what_is_missing_is_named_with_what_to_do() -> None:
    require_packages("a table", ("rich", "json"), "rich")
    with pytest.raises(ConfigurationError, match=r"a table needs no_such.*`pip install '.\[x\]'`"):
        require_packages("a table", ("rich", "no_such"), "'.[x]'")

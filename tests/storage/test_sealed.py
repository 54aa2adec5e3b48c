import pytest

from service.storage.sealed import seal, unseal

SEALED = seal(b'{"a":1}')


def test_gives_back_what_was_sealed() -> None:
    assert unseal(SEALED) == b'{"a":1}'


@pytest.mark.parametrize("place", range(len(SEALED)))
def test_finds_every_bit_that_was_flipped_and_every_byte_that_is_missing(place: int) -> None:
    flipped = SEALED[:place] + bytes([SEALED[place] ^ 1]) + SEALED[place + 1 :]
    for damaged in (flipped, SEALED[:place]):
        with pytest.raises(ValueError, match="checksum"):
            unseal(damaged)

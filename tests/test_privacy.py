"""Hashes that stand for users."""

from service.privacy import Pseudonyms


def test_the_same_key_names_a_user_the_same() -> None:
    assert Pseudonyms("a secret of ours").of(b"ann") == Pseudonyms("a secret of ours").of(b"ann")


def test_users_and_keys_have_names_of_their_own() -> None:
    ours, theirs = Pseudonyms("a secret of ours"), Pseudonyms("a secret of theirs")
    assert len({ours.of(b"ann"), ours.of(b"bob"), theirs.of(b"ann")}) == 3


def test_without_a_key_nobody_else_gets_the_same_name() -> None:
    assert Pseudonyms().of(b"ann") != Pseudonyms().of(b"ann")


def test_an_id_of_any_length_and_any_key_has_16_digits() -> None:
    name = Pseudonyms("x" * 500).of(b"u" * 5_000)
    assert len(name) == 16
    assert int(name, 16) >= 0

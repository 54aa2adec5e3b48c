"""Names for users where it must not be read who they are: logs and headers of dead letters."""

import hashlib
import secrets

_BYTES = 8  # enough to tell the users of one shop apart, and no more is needed


class Pseudonyms:
    """Keyed hashes: the same user has the same one, and without the key no list of users helps to
    find out whose it is."""

    def __init__(self, secret: str | None = None) -> None:
        """A random key where there is no secret: names then mean nothing to another process."""
        given = secrets.token_bytes(32) if secret is None else secret.encode()
        self._key = hashlib.blake2b(given, digest_size=32).digest()

    def of(self, user: bytes) -> str:
        """16 hexadecimal digits for a user id's bytes."""
        return hashlib.blake2b(user, key=self._key, digest_size=_BYTES).hexdigest()

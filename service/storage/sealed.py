"""A manifest's bytes with their checksum: `{"sha256": ..., "manifest": {...}}`.

The checksum is over the bytes of the inner object. It is not a defence against anyone who may
write the file: it finds what disks and interrupted copies do.
"""

import hashlib

_HEAD, _MIDDLE, _TAIL = b'{"sha256":"', b'","manifest":', b"}\n"
_DIGEST_CHARS = 64


def seal(body: bytes) -> bytes:
    """`body` is one JSON object."""
    digest = hashlib.sha256(body).hexdigest().encode()
    return b"".join((_HEAD, digest, _MIDDLE, body, _TAIL))


def unseal(data: bytes) -> bytes:
    """The body in `data`. Raises ValueError for anything that `seal` did not make."""
    body = data[len(_HEAD) + _DIGEST_CHARS + len(_MIDDLE) : -len(_TAIL)]
    # Sealing again and comparing covers every byte, the checksum's own and the frame's too.
    if seal(body) != data:
        raise ValueError("is truncated or altered: its checksum is wrong")
    return body

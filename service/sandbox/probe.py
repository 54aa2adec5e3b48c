"""Does a Kafka broker answer? One metadata request on a plain socket.

A broker accepts connections before it can host a topic: only once its metadata names a live
broker is it ready. Two fixed frames do not warrant a client here.
"""

import socket
import struct

_METADATA, _VERSION, _CORRELATION = 3, 1, 1
# int16 api key, int16 version, int32 correlation id, null client id, an empty array of topics
_BODY = struct.pack(">hhihi", _METADATA, _VERSION, _CORRELATION, -1, 0)
_REQUEST = struct.pack(">i", len(_BODY)) + _BODY
_ANSWER = struct.Struct(">iii")  # size, correlation id, number of live brokers


def answers(port: int, timeout_s: float) -> bool:
    """Whether the broker at this loopback port names a live broker; blocks for `timeout_s` each
    while connecting and while reading."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
            connection.sendall(_REQUEST)
            head = connection.recv(_ANSWER.size)
    except OSError:
        return False
    if len(head) < _ANSWER.size:
        return False
    correlation: int
    brokers: int
    _, correlation, brokers = _ANSWER.unpack(head)
    return correlation == _CORRELATION and brokers > 0

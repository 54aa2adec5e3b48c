"""What the sandbox's programs that run others have in common."""

import socket
import subprocess


def end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM, and kill -9 after the grace time, for which it blocks at most."""
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Free a moment ago; another process could still take it first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

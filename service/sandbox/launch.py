"""Becomes the command given to it, and dies with the process that ran it (Linux).

Run as a script: `python -I -S launch.py PARENT_PID COMMAND...`. A process of its own, because
the other way, code of ours between fork and exec, can deadlock a parent that has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # Dead already: the signal above was asked for too late and will not come.
    if os.getppid() == int(parent):
        os.execv(command[0], command)


if __name__ == "__main__":
    main()

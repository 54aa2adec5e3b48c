"""`headwater` with points at which it can be struck: `python -m tests.faults.serve serve`.

The worker is a process of its own, which runs this module's top level again (as `__mp_main__`):
so it has its own points without a word in the product.
"""

import os
import sys
from pathlib import Path

from tests.faults.orders import FOLDER_VARIABLE
from tests.faults.points import MAIN, WORKER, install

# multiprocessing knows of no parent yet when it runs this in the worker.
install(MAIN if __name__ == "__main__" else WORKER, Path(os.environ[FOLDER_VARIABLE]))

if __name__ == "__main__":
    from service.cli import main

    sys.exit(main())

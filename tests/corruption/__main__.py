"""``python -m tests.corruption``; see ``many``."""

import signal
import sys

from tests.corruption.many import main

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

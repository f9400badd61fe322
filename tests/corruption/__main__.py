"""``python -m corruption``, from the directory of the tests; see ``many``."""

import sys

from corruption.many import main

if __name__ == "__main__":
    sys.exit(main())

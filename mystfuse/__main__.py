"""``python -m mystfuse``: the same as the ``mystfuse`` command."""

from mystfuse.cli.main import main

main()

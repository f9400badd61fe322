"""``python -m mystfuse``: the same as the ``mystfuse`` command."""

from mystfuse.cli.start import mystfuse

mystfuse()

"""The cost of mystfuse, compared with other tools and with its marks (``scripts/bench``)."""

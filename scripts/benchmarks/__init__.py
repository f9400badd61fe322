"""What mystfuse costs, against other people's tools and against the marks it is to reach (``scripts/bench``)."""

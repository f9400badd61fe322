"""exec and run: the program's isolation and environment."""

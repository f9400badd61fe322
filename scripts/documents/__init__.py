"""Makes parts of the documents: the recorded session and the reference of commands."""

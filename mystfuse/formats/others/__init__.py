"""What other files are: told by a few of their bytes, with the command that helps; ``image/identify`` asks all."""

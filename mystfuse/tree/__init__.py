"""A tree read by its paths: ls, cat, extract, tar."""

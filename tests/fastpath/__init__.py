"""The mount as many processes see it at once: with the fast path, and without."""

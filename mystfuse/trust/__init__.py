"""Who is believed. Pure decisions over bytes that somebody else has read; no I/O."""

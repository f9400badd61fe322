"""Digests of many blocks and AES over many sectors (natively, or in Python alone: ``kernel``), and keys."""

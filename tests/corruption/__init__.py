"""Corrupt EXT2 file systems behind valid hash trees and signatures: what a trusted signer may sign, on purpose or
because of a bug.

``bases`` makes sound file systems, ``named`` and ``scattered`` break them, ``driver`` seals, mounts, reads, writes and
judges. ``test_corruption.py`` runs all named cases and some random ones; ``scripts/corrupt`` any number.
"""

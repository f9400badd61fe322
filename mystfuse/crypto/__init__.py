"""Batch hashing: many blocks a call, so that a native kernel can take its place."""

"""Whole images: opening, building and checking them."""

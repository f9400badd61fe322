"""The kernels in Python alone, over hashlib and ``cryptography``: what ``native`` does, where that is missing."""

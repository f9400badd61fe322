"""Trusted root hashes, signers and packages: the policy, its sources, and RSA signatures."""

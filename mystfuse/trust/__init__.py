"""Which root hashes, signers and packages are trusted; reading who is, and RSA signatures."""

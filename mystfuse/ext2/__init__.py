"""The EXT2 file system: synchronous, over blocks that are in memory. Knows neither FUSE nor crypto, and never awaits.

Verified blocks are authentic, but their signer may be malicious or mistaken. Nothing here loops, recurses or allocates
without a bound, for any contents of the blocks.
"""

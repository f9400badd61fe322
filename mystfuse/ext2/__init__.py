"""The EXT2 file system: synchronous, over blocks that are in memory. Knows neither FUSE nor crypto, and never awaits.

What a signer vouched for is authentic; it may still be malicious or broken. Nothing here loops, recurses or allocates
without a bound, whatever the blocks say.
"""

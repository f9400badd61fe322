"""The pipeline between the image file and the file system, one layer a file, stacked at mount time.

``reader`` is below the trust boundary: what it returns is *unverified*. ``verity`` is the boundary.
"""

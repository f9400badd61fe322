"""The names that OCI images are made of: media types, annotations, files of a layout.

Source: the OCI image specification 1.1, ``media-types.md``, ``annotations.md`` and ``image-layout.md``.
"""

from __future__ import annotations

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

REF_NAME = "org.opencontainers.image.ref.name"
"""The annotation of an index that has the tag."""

LAYOUT_FILE = "oci-layout"
LAYOUT_VERSION = "1.0.0"
INDEX_FILE = "index.json"
BLOBS = "blobs"

WHITEOUT = b".wh."
"""What names begin with in a layer that say what it removes (``layer.md``)."""
OPAQUE = b".wh..wh..opq"
"""A name that hides all that a directory had in the layers below."""

CONFIG_IN_IMAGE = b".oci-config.json"
"""In the root directory of an image of ours: the configuration of the OCI image that it was, or is to become."""

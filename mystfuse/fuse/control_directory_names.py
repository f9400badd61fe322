"""Names and inode numbers of the control directory, for commands that do without pyfuse3."""

CONTROL_NAME = b".mystfuse"
CONTROL_INO = 1 << 32
STATUS_NAME = b"status.json"
STATUS_INO = CONTROL_INO + 1
IMAGE_NAME = b"image"
IMAGE_INO = CONTROL_INO + 2

"""Names and inode numbers of the control directory, for commands that do without pyfuse3."""

CONTROL_NAME = b".mystfuse"
CONTROL_INO = 1 << 32
STATUS_NAME = b"status.json"
STATUS_INO = CONTROL_INO + 1
IMAGE_NAME = b"image"
IMAGE_INO = CONTROL_INO + 2
METRICS_NAME = b"metrics"
METRICS_INO = CONTROL_INO + 3
BASE_NAME = b"base"
BASE_INO = CONTROL_INO + 4
WRITTEN_NAME = b"written"
WRITTEN_INO = CONTROL_INO + 5
TOUCHED_NAME = b"touched"
TOUCHED_INO = CONTROL_INO + 6

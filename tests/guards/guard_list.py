"""All the guards: of what an image, its storage and its signer can do, and of what others on the machine can."""

from __future__ import annotations

from tests.guards.guard import Guard
from tests.guards.guards_of_images import OF_IMAGES
from tests.guards.guards_of_machines import OF_MACHINES

__all__ = ["GUARDS", "Guard"]

GUARDS: tuple[Guard, ...] = (*OF_IMAGES, *OF_MACHINES)

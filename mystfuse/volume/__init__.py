"""The asynchronous file system: runs the core's operations and fetches what they miss."""

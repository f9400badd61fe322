"""The mount: pyfuse3's requests in, calls to the volume out, and the life of the daemon. No file-system logic."""

"""Archives: tar files, and images of containers (OCI, docker), in and out; and a tree of files in memory."""

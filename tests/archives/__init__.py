"""Archives, and the OCI layouts that we write."""

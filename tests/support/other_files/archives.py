"""Archives and compressed files."""

from __future__ import annotations

from tests.support.other_files.makers import OtherFile, container, cpio, packed, piped

ARCHIVES = {
    "tar": OtherFile(
        "tar",
        "a tar archive (GNU)",
        packed("tar", "-cf", "TARGET", "."),
        "POSIX tar archive (GNU)",
        name="x.tar",
        leads_to="image",
    ),
    "ustar": OtherFile(
        "tar",
        "a tar archive (ustar)",
        packed("tar", "--format=ustar", "-cf", "TARGET", "."),
        "POSIX tar archive",
        leads_to="image",
    ),
    "pax": OtherFile(
        "tar",
        "a tar archive (pax)",
        packed("tar", "--format=pax", "-cf", "TARGET", "."),
        "POSIX tar archive",
        leads_to="image",
    ),
    "v7 tar": OtherFile(
        "tar", "a tar archive (v7)", packed("tar", "--format=v7", "-cf", "TARGET", "."), "tar archive", leads_to="image"
    ),
    "tar.gz": OtherFile(
        "gzip",
        "a tar archive, compressed with gzip",
        packed("tar", "-czf", "TARGET", "."),
        "gzip",
        name="x.tar.gz",
        leads_to="image",
    ),
    "tar.xz": OtherFile(
        "xz",
        "a tar archive, compressed with xz",
        packed("tar", "-cJf", "TARGET", "."),
        "XZ",
        name="x.txz",
        leads_to="image",
    ),
    "tar.zst": OtherFile(
        "zstd",
        "a tar archive, compressed with zstd",
        packed("tar", "--zstd", "-cf", "TARGET", "."),
        "Zstandard",
        name="x.tar.zst",
        leads_to="image",
    ),
    "newc cpio": OtherFile("cpio", "a cpio archive (newc)", cpio("newc"), "cpio archive", leads_to="image"),
    "odc cpio": OtherFile("cpio", "a cpio archive (odc)", cpio("odc"), "cpio archive", leads_to="image"),
    "bin cpio": OtherFile("cpio", "a cpio archive (binary)", cpio("bin"), "cpio archive", leads_to="image"),
    "gzip": OtherFile("gzip", "compressed with gzip", piped("gzip", "-1"), "gzip", name="x.img.gz", leads_to="info"),
    "xz": OtherFile("xz", "compressed with xz", piped("xz", "-0"), "XZ", name="x.img.xz", leads_to="info"),
    "zstd": OtherFile(
        "zstd", "compressed with zstd", piped("zstd", "-q"), "Zstandard", name="x.img.zst", leads_to="info"
    ),
    "bzip2": OtherFile(
        "bzip2", "compressed with bzip2", piped("bzip2", "-1"), "bzip2", name="x.img.bz2", leads_to="info"
    ),
    "lz4": OtherFile("lz4", "compressed with LZ4", piped("lz4", "-q"), "LZ4", name="x", leads_to="info"),
    "zip": OtherFile(
        "zip", "a zip archive", packed("zip", "-q", "-r", "TARGET", "."), "Zip archive", name="x.zip", leads_to="image"
    ),
    "7z": OtherFile(
        "7z", "a 7z archive", packed("7z", "a", "-bd", "TARGET", "."), "7-zip", name="x.7z", leads_to="image"
    ),
    "ar": OtherFile(
        "ar", "an ar archive", packed("ar", "rc", "TARGET", "hello"), "ar archive", name="x.a", leads_to="image"
    ),
    "oci": OtherFile("oci", "an OCI image archive", container(True), "tar archive"),
    "docker": OtherFile("docker", "a Docker image archive", container(False), "tar archive"),
}

"""Guards of credentials for registries and S3, and of what is fetched and pushed with them."""

from __future__ import annotations

from tests.guards.guard import Guard

OF_CREDENTIALS: tuple[Guard, ...] = (
    Guard(
        "where blobs are gets no credentials",
        "mystfuse/remote/http_redirects.py",
        "if self._authorization is None or url.host != start.host or not (is_same or is_upgraded):",
        "if self._authorization is None:",
        ("remote/test_oci_redirects.py::test_where_blobs_are_gets_no_credentials",),
    ),
    Guard(
        "where uploads are gets no credentials",
        "mystfuse/remote/registry.py",
        'own = await self.auth.authorization() if target.origin == home.origin else ""',
        "own = await self.auth.authorization()",
        ("remote/test_oci_redirects.py::test_where_uploads_are_gets_no_credentials",),
    ),
    Guard(
        "a token server without TLS does not get the password",
        "mystfuse/remote/registry_auth.py",
        "if not realm.startswith(allowed):",
        "if False:",
        ("remote/test_oci_redirects.py::test_a_token_server_without_tls_does_not_get_the_password",),
    ),
    Guard(
        "a manifest is the one of the digest in the address",
        "mystfuse/remote/registry.py",
        'if ":" in reference and not digest_matches(reference, answer.body):',
        "if False:",
        ("remote/test_oci_redirects.py::test_a_manifest_that_is_not_the_one_of_its_digest",),
    ),
    Guard(
        "the version of an object that was opened is the one that is read",
        "mystfuse/remote/s3_origin.py",
        "if not self._object.version:",
        "if False:",
        ("remote/test_s3_origin.py::test_the_version_that_was_opened_stays",),
    ),
    Guard(
        "what a mount would refuse is not pushed",
        "mystfuse/cli/commands/push.py",
        "check_contents(opened, Keys(), io_timeout, progress)",
        "pass",
        ("cli/test_push.py::test_an_image_that_no_mount_accepts_is_not_pushed",),
    ),
)

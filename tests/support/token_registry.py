"""A registry with one image whose tokens expire: a handler for ``FaultyServer``.

Source: the OCI distribution specification 1.1 ("Pulling manifests", "Pulling blobs"); Docker's "Token authentication".
"""

from __future__ import annotations

import json

from mystfuse.formats.oci_artifact import ARTIFACT_TYPE, CONTENT_TYPE, EMPTY, EMPTY_DATA, MANIFEST, digest_of
from tests.support.http_objects import Request, Response, StoredObject


class TokenRegistry:
    """Serves an image as ``oci://HOST/image:latest``."""

    def __init__(self, content: bytes) -> None:
        self.blob = StoredObject(content)
        self.tokens_given = 0
        self._token = 0
        self._digest = digest_of(content)
        layer = {"mediaType": CONTENT_TYPE, "digest": self._digest, "size": len(content)}
        config = {"mediaType": EMPTY, "digest": digest_of(EMPTY_DATA), "size": len(EMPTY_DATA)}
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": ARTIFACT_TYPE}
        self._manifest = json.dumps({**document, "config": config, "layers": [layer]}).encode()

    def expire(self) -> None:
        """Tokens given until now are refused from now on."""
        self._token += 1

    async def __call__(self, request: Request) -> Response:
        path = request.target.partition("?")[0]
        if path == "/token":
            self.tokens_given += 1
            document = {"token": f"token-{self._token}", "expires_in": 300}
            return Response(200, {"Content-Type": "application/json"}, json.dumps(document).encode())
        if request.headers.get("authorization") != f"Bearer token-{self._token}":
            realm = f"http://{request.headers['host']}/token"
            challenge = f'Bearer realm="{realm}",service="test",scope="repository:image:pull"'
            return Response(401, {"WWW-Authenticate": challenge})
        if path == "/v2/image/manifests/latest":
            headers = {"Content-Type": MANIFEST, "Docker-Content-Digest": digest_of(self._manifest)}
            return Response(200, headers, self._manifest)
        if path == f"/v2/image/blobs/{self._digest}":
            return await self.blob(request)
        return Response(404)

"""Which proxy the environment names for a host: ``http_proxy``, ``https_proxy``, ``all_proxy`` and ``no_proxy``, in
small letters or capitals.

Sources: curl(1), "ENVIRONMENT"; the documentation of ``urllib.request.getproxies``.
"""

from __future__ import annotations

import ipaddress
from urllib.request import getproxies, proxy_bypass


def proxy_for(scheme: str, host: str, port: int | None) -> str | None:
    """The proxy's URL, or None: none is named, or ``no_proxy`` has the host, its domain or its network."""
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if (
        not proxy
        or proxy_bypass(host if port is None else f"{host}:{port}")
        or _in_network(host, proxies.get("no", ""))
    ):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _in_network(host: str, no_proxy: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for word in no_proxy.split(","):
        try:
            if address in ipaddress.ip_network(word.strip().strip("[]"), strict=False):
                return True
        except ValueError:
            continue
    return False

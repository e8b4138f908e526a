"""API keys: who is the caller?

Each key belongs to a tenant; programs, sessions and prefix caches of tenants never meet. Keys are kept as
SHA-256 digests and every one of them is compared in constant time, so that neither a log, a dump nor the
time of an answer tells a key. Without keys everybody is the tenant `default`, and `settings` sees to it
that the server then listens on loopback only.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping

DEFAULT_TENANT = "default"
_COMMENT = re.compile(r"(^|\s)#.*")


class ApiKeys:
    """The known keys.

    Args:
        keys: (tenant, key) pairs; none: no key is needed.

    Raises:
        ValueError: an empty tenant or key, or one key for two tenants.
    """

    def __init__(self, keys: Iterable[tuple[str, str]] = ()) -> None:
        self._tenants: dict[bytes, str] = {}
        for tenant, key in keys:
            if not tenant or not key:
                raise ValueError("API keys are written tenant:key, neither of them empty")
            if self._tenants.setdefault(_digest(key), tenant) != tenant:
                raise ValueError(f"one API key is given to tenant {tenant!r} and to another one")

    def __len__(self) -> int:
        return len(self._tenants)

    @property
    def required(self) -> bool:
        """True when callers must present a key."""
        return bool(self._tenants)

    def tenant_of(self, key: str | None) -> str | None:
        """The tenant of a presented key; None: refuse the caller."""
        if not self.required:
            return DEFAULT_TENANT
        if not key:
            return None
        presented, found = _digest(key), None
        for digest, tenant in self._tenants.items():
            if hmac.compare_digest(digest, presented):
                found = tenant
        return found

    def tenant_of_authorization(self, authorization: str | None) -> str | None:
        """The tenant of an `authorization` value, `Bearer KEY`; None: refuse the caller."""
        scheme, _, key = (authorization or "").partition(" ")
        return self.tenant_of(key.strip() if scheme.lower() == "bearer" else None)

    def tenant_of_headers(self, headers: Mapping[str, str]) -> str | None:
        """The tenant of a request by `Authorization: Bearer KEY` or `x-api-key: KEY`; None: refuse it.

        Args:
            headers: values by lower-case name. The Anthropic SDK may send both; either admits.
        """
        return self.tenant_of_authorization(headers.get("authorization")) or self.tenant_of(
            headers.get("x-api-key")
        )


def parse_api_keys(text: str) -> ApiKeys:
    """Read `tenant:key` entries separated by commas or lines; blank lines and comments are skipped. A `#`
    begins a comment at the beginning of a line or after a space; elsewhere it belongs to the key.

    Raises:
        ValueError: an entry that is not `tenant:key`; the key itself is never in the message.
    """
    pairs: list[tuple[str, str]] = []
    for line in text.splitlines():
        for entry in _COMMENT.sub("", line).split(","):
            if entry.strip():
                tenant, colon, key = entry.strip().partition(":")
                if not colon:
                    raise ValueError(f"API key number {len(pairs) + 1} is not written tenant:key")
                pairs.append((tenant.strip(), key.strip()))
    return ApiKeys(pairs)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()

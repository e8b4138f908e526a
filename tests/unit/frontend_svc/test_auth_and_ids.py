"""API keys and ids."""

import re
from uuid import UUID

import pytest

from frontend_svc.auth import DEFAULT_TENANT, ApiKeys, parse_api_keys
from frontend_svc.ids import new_id, uuid7


def test_a_key_names_its_tenant_by_either_header() -> None:
    keys = parse_api_keys("ann:k1,bob:k2\n# comment\nbob:k:3\n")
    assert keys.tenant_of_headers({"authorization": "Bearer k1"}) == "ann"
    assert keys.tenant_of_headers({"authorization": "bearer k2"}) == "bob"
    assert keys.tenant_of_headers({"x-api-key": "k:3"}) == "bob"
    assert keys.tenant_of_headers({"authorization": "Basic xyz", "x-api-key": "k1"}) == "ann"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "k1"},
        {"x-api-key": "K1"},
        {"authorization": "Bearer k1x"},
    ],
)
def test_everything_else_is_nobody(headers: dict[str, str]) -> None:
    assert parse_api_keys("ann:k1").tenant_of_headers(headers) is None


def test_a_key_with_a_hash_sign_is_not_cut_short() -> None:
    keys = parse_api_keys("ann:sk#long-secret # Ann's\n  # bob:k2\n")
    assert keys.tenant_of("sk#long-secret") == "ann"
    assert keys.tenant_of("sk") is None
    assert len(keys) == 1


def test_without_keys_everybody_is_the_default_tenant() -> None:
    assert ApiKeys().tenant_of_headers({}) == DEFAULT_TENANT
    assert ApiKeys().tenant_of_authorization("Bearer whatever") == DEFAULT_TENANT


@pytest.mark.parametrize("text", ["secret1", "ann:", ":secret1", "ann:secret1,bob:secret1"])
def test_bad_keys_are_refused_without_showing_them(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_api_keys(text)
    assert "secret1" not in str(caught.value)


def test_uuid7_has_its_version_variant_and_time() -> None:
    identifier = uuid7(now_ms=0x0123456789AB)
    assert identifier.version == 7
    assert identifier.variant == UUID(new_id()).variant
    assert str(identifier).startswith("01234567-89ab-7")
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", new_id())


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    assert str(uuid7(1)) < str(uuid7(2)) < str(uuid7(3))
    assert len({new_id() for _ in range(1000)}) == 1000

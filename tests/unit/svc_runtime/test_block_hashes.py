"""Chained block hashes, as frontends and the scheduler make them."""

from hashlib import blake2b

import pytest

from svc_runtime.block_hashes import extend_hashes, hash_prompt, root_hash, unpack_digests


def test_a_prompt_is_hashed_as_the_docstring_says() -> None:
    root = blake2b(b"4:acmesalt", digest_size=16).digest()
    first = blake2b(root + bytes([1, 0, 0, 0, 0, 1, 0, 0]), digest_size=16).digest()
    second = blake2b(first + bytes([3, 0, 0, 0, 255, 255, 255, 127]), digest_size=16).digest()
    assert hash_prompt("acme", "salt", [1, 256, 3, 2**31 - 1, 5], 2) == first + second


def test_packed_digests_continue_where_a_prompt_ended() -> None:
    tokens = [*range(100, 148)]
    hashes = unpack_digests(hash_prompt("acme", "", tokens[:20], 8))
    assert len(hashes) == 2
    extend_hashes(hashes, root_hash("acme", ""), tokens, 6, 8)
    assert b"".join(hashes) == hash_prompt("acme", "", tokens, 8)


def test_a_prompt_without_a_full_block_has_no_digests() -> None:
    assert hash_prompt("acme", "", [1, 2, 3], 4) == b""
    assert unpack_digests(b"") == []


def test_blocks_that_are_known_are_not_hashed_again() -> None:
    hashes = [b"known" * 3 + b"!"]
    extend_hashes(hashes, root_hash("acme", ""), [1, 2, 3, 4], 1, 2)
    assert hashes == [b"known" * 3 + b"!"]
    extend_hashes(hashes, root_hash("acme", ""), [1, 2, 3, 4], 2, 2)
    assert hashes[1] == blake2b(hashes[0] + bytes([3, 0, 0, 0, 4, 0, 0, 0]), digest_size=16).digest()


def test_a_token_that_is_no_int32_leaves_the_hashes_alone() -> None:
    hashes: list[bytes] = []
    with pytest.raises(OverflowError):
        extend_hashes(hashes, root_hash("acme", ""), [1, 2, 3, 2**31], 2, 2)
    assert hashes == []


def test_half_a_digest_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16 bytes, these 17"):
        unpack_digests(bytes(17))


def test_equal_prefixes_share_hashes_up_to_the_first_difference() -> None:
    left = unpack_digests(hash_prompt("acme", "", [*range(12)], 4))
    right = unpack_digests(hash_prompt("acme", "", [*range(7), 99, *range(8, 12)], 4))
    assert left[0] == right[0]
    assert left[1] != right[1]
    assert left[2] != right[2], "same tokens after another prefix are other KV"


def test_tenants_and_salts_do_not_share() -> None:
    salted = [("a", ""), ("b", ""), ("a", "s"), ("as", ""), ("", "as")]
    assert len({hash_prompt(tenant, salt, [1, 2, 3, 4], 4) for tenant, salt in salted}) == len(salted)


def test_token_boundaries_matter() -> None:
    assert hash_prompt("acme", "", [1, 23], 2) != hash_prompt("acme", "", [12, 3], 2)

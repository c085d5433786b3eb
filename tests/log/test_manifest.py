"""Manifests, the keys that are their hashes, and who may sign."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hypercore.crypto import BLAKE2B, BLAKE3, DEFAULT_NAMESPACE, KeyPair, TreeHash, discovery_key, sign
from hypercore.encoding import encode_uint
from hypercore.errors import (
    DecodeError,
    NewerFormatError,
    NewerManifestError,
    NotWritableError,
    OptionError,
    VerificationError,
)
from hypercore.log.manifest import (
    MAX_SIGNATURE_SIZE,
    Authority,
    Manifest,
    Prologue,
    Signer,
    decode_manifest,
    default_manifest,
    encode_manifest,
    manifest_key,
    tree_hash_of,
)
from hypercore.log.merkle import append_blocks
from hypercore.proofs import Node
from tests.log.trees import KEY_PAIR, vectors

MANIFESTS = vectors("manifests")
MERKLE = vectors("merkle")
BLOCKS = [bytes.fromhex(block) for block in MERKLE["blocks"]]
#: Refused by Node because only something newer could have written them; everything else refused is damage.
NEWER = ("04", "010001", "000003", "0001", "010000010101")


def named(cases: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def manifest_of(decoded: dict[str, Any]) -> Manifest:
    prologue = decoded["prologue"]
    linked = decoded["linked"]
    signers = [
        Signer(bytes.fromhex(signer["publicKey"]), bytes.fromhex(signer["namespace"]), signer["signature"])
        for signer in decoded["signers"]
    ]
    return Manifest(
        version=decoded["version"],
        hash=decoded["hash"],
        allow_patch=decoded["allowPatch"],
        quorum=decoded["quorum"],
        signers=tuple(signers),
        prologue=prologue and Prologue(bytes.fromhex(prologue["hash"]), prologue["length"]),
        linked=linked and tuple(bytes.fromhex(key) for key in linked),
        user_data=decoded["userData"] and bytes.fromhex(decoded["userData"]),
    )


def roots_of(length: int, tree_hash: TreeHash = BLAKE2B) -> list[Node]:
    return append_blocks([], 0, BLOCKS[:length], tree_hash)[0]


def tree_of(length: int, tree_hash: TreeHash = BLAKE2B) -> bytes:
    return tree_hash.tree(roots_of(length, tree_hash))


def authority_of(encoded: str) -> Authority:
    manifest, _ = decode_manifest(bytes.fromhex(encoded))
    return Authority.of(manifest_key(manifest), manifest)


# ---- encoding -------------------------------------------------------------------------------------


@named(MANIFESTS["manifests"])
def test_every_layout_is_read_and_written_as_node_does(case: dict[str, Any]) -> None:
    encoded = bytes.fromhex(case["encoded"])
    manifest, end = decode_manifest(b"\xaa" + encoded + b"\xbb", 1)
    assert manifest == manifest_of(case["decoded"])
    assert end == 1 + len(encoded)
    assert encode_manifest(manifest) == encoded
    assert manifest_key(manifest).hex() == case["hash"]
    assert discovery_key(manifest_key(manifest)).hex() == case["discoveryKey"]


@pytest.mark.parametrize("case", MANIFESTS["refused"], ids=lambda case: case["hex"] or "empty")
def test_what_node_refuses_is_refused_and_newer_is_told_from_damaged(case: dict[str, str]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_manifest(bytes.fromhex(case["hex"]))
    assert isinstance(caught.value, NewerFormatError) == (case["hex"] in NEWER)


def test_every_cut_of_every_manifest_is_refused_as_damage() -> None:
    for case in MANIFESTS["manifests"]:
        encoded = bytes.fromhex(case["encoded"])
        for end in range(len(encoded)):
            with pytest.raises(DecodeError) as caught:
                decode_manifest(encoded, 0, end)
            assert not isinstance(caught.value, NewerManifestError)


def test_unknown_flags_are_newer() -> None:
    for encoded in ("01100001" + "00", "0104", "00000202"):
        with pytest.raises(NewerManifestError):
            decode_manifest(bytes.fromhex(encoded))


def test_odd_number_forms_do_not_change_the_key() -> None:
    encoded = encode_manifest(default_manifest(KEY_PAIR.public_key))
    odd = b"\xfd\x01\x00" + encoded[1:]
    assert manifest_key(decode_manifest(odd)[0]) == manifest_key(default_manifest(KEY_PAIR.public_key))


def test_the_counts_of_a_manifest_are_bounded_before_anything_is_read() -> None:
    signers = b"\x01\x00\x00\x01" + encode_uint(257) + bytes(65) * 257
    linked = b"\x02\x04\x00\x00\x00" + encode_uint(257) + bytes(32) * 257
    user_data = b"\x02\x08\x00\x00\x00" + encode_uint(64 * 1024 + 1) + bytes(64 * 1024 + 1)
    for encoded in (signers, linked, user_data):
        with pytest.raises(DecodeError, match="at most"):
            decode_manifest(encoded)


def test_the_default_manifest_has_one_signer_in_the_default_namespace() -> None:
    manifest = default_manifest(KEY_PAIR.public_key)
    assert manifest == Manifest(signers=(Signer(KEY_PAIR.public_key, DEFAULT_NAMESPACE),))
    assert encode_manifest(manifest) == b"\x01\x00\x00\x01\x01\x00" + DEFAULT_NAMESPACE + KEY_PAIR.public_key


def test_blake3_is_a_hash_number_that_others_do_not_know() -> None:
    manifest = default_manifest(KEY_PAIR.public_key, hash="blake3")
    assert encode_manifest(manifest)[2] == 0xB3
    assert decode_manifest(encode_manifest(manifest))[0] == manifest
    assert tree_hash_of(manifest) is BLAKE3
    assert manifest_key(manifest) != manifest_key(default_manifest(KEY_PAIR.public_key))
    with pytest.raises(OptionError, match="sha1"):
        default_manifest(KEY_PAIR.public_key, hash="sha1")


# ---- which key a manifest speaks for -------------------------------------------------------------------


def test_a_manifest_speaks_for_its_own_key_only() -> None:
    manifest = default_manifest(KEY_PAIR.public_key)
    assert not Authority.of(manifest_key(manifest), manifest).is_compat
    with pytest.raises(VerificationError, match="does not hash"):
        Authority.of(bytes(32), manifest)


def test_a_core_whose_key_is_its_signer_is_compat_whatever_else_its_manifest_says() -> None:
    forged = Manifest(version=3, quorum=0, signers=(Signer(KEY_PAIR.public_key),), prologue=Prologue(tree_of(4), 4))
    authority = Authority.of(KEY_PAIR.public_key, forged)
    assert authority.is_compat
    assert authority.prologue is None
    assert not authority.verify(roots_of(4), 4, 0, b"")
    with pytest.raises(VerificationError, match="blake3"):
        Authority.of(KEY_PAIR.public_key, default_manifest(KEY_PAIR.public_key, hash="blake3"))


def test_without_a_manifest_a_core_is_taken_for_compat() -> None:
    authority = Authority.of(KEY_PAIR.public_key, None)
    assert authority.is_compat
    signature = authority.sign(tree_of(5), 5, 0, KEY_PAIR)
    assert Authority.of(KEY_PAIR.public_key, default_manifest(KEY_PAIR.public_key)).verify(roots_of(5), 5, 0, signature)


# ---- signatures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["v1", "v0", "compat"])
def test_every_tree_is_signed_as_node_signs_it(form: str) -> None:
    manifests = {"v1": MERKLE["signer"]["manifestV1"], "v0": MERKLE["signer"]["manifestV0"]}
    authority = Authority.of(KEY_PAIR.public_key, None) if form == "compat" else authority_of(manifests[form])
    for tree in MERKLE["trees"]:
        length, fork = tree["length"], tree["fork"]
        tree_hash = bytes.fromhex(tree["treeHash"])
        signature = bytes.fromhex(tree[form]["signature"])
        assert authority.signable(tree_hash, length, fork).hex() == tree[form]["signable"]
        assert authority.sign(tree_hash, length, fork, KEY_PAIR) == signature
        assert authority.verify(roots_of(length), length, fork, signature)
        assert not authority.verify(roots_of(length), length, fork + 1, signature)
        assert not authority.verify(roots_of(length), length + 1, fork, signature)


@named(MERKLE["multisig"])
def test_signatures_of_several_signers_hold_when_they_do_in_node(case: dict[str, Any]) -> None:
    authority = authority_of(case["manifest"])
    assert authority.key.hex() == case["key"]
    signature = bytes.fromhex(case["signature"])
    assert authority.verify(roots_of(case["length"]), case["length"], 0, signature) is case["valid"]
    assert not authority.verify(roots_of(3), 3, 0, signature)


@named(MERKLE["multisig"])
def test_every_cut_of_a_signature_is_refused(case: dict[str, Any]) -> None:
    authority, signature = authority_of(case["manifest"]), bytes.fromhex(case["signature"])
    roots = roots_of(case["length"])
    for size in (*range(0, len(signature), 7), len(signature) - 1):
        assert not authority.verify(roots, case["length"], 0, signature[:size])


def test_bytes_behind_a_signature_are_ignored_up_to_the_bound() -> None:
    authority = authority_of(MERKLE["signer"]["manifestV1"])
    signature = authority.sign(tree_of(3), 3, 0, KEY_PAIR)
    assert authority.verify(roots_of(3), 3, 0, signature + b"more")
    assert not authority.verify(roots_of(3), 3, 0, signature + bytes(MAX_SIGNATURE_SIZE))


@pytest.mark.parametrize("case", MERKLE["prologue"], ids=lambda case: f"length {case['length']}")
def test_a_prologue_needs_no_signature_and_nothing_shorter_is_valid(case: dict[str, Any]) -> None:
    authority = authority_of(case["manifest"])
    length = case["length"]
    signature = bytes.fromhex(case["signature"] or "")
    assert authority.verify(roots_of(length), length, 0, signature) is case["valid"]
    if case["valid"]:
        assert authority.sign(tree_of(length), length, 0, KEY_PAIR) == signature
    else:
        with pytest.raises(NotWritableError, match="prologue"):
            authority.sign(tree_of(length), length, 0, KEY_PAIR)


def test_another_tree_of_the_prologue_length_is_refused() -> None:
    authority = authority_of(MERKLE["prologue"][0]["manifest"])
    other, _ = append_blocks([], 0, [b"other"] * 5, BLAKE2B)
    assert not authority.verify(other, 5, 0, b"")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("hash_name", ["blake2b", "blake3"])
def test_a_quorum_signs_together_and_no_signer_alone(version: int, hash_name: str) -> None:
    key_pairs = [KeyPair.from_seed(bytes([number]) * 32) for number in (1, 2, 3)]
    signers = tuple(Signer(pair.public_key, bytes([number]) * 32) for number, pair in enumerate(key_pairs))
    manifest = Manifest(version=version, hash=hash_name, quorum=2, signers=signers)
    authority = Authority.of(manifest_key(manifest), manifest)
    tree_hash = tree_of(6, authority.tree_hash)
    parts = [authority.sign_part(tree_hash, 6, 1, pair) for pair in key_pairs]
    assert [number for number, _ in parts] == [0, 1, 2]
    roots = roots_of(6, authority.tree_hash)
    assert authority.verify(roots, 6, 1, authority.assemble(dict(parts[1:])))
    assert not authority.verify(roots, 6, 1, authority.assemble({0: parts[0][1], 1: parts[2][1]}))
    assert authority.verify(roots, 6, 1, authority.assemble({**dict(parts[:2]), 2: bytes(64)}))
    with pytest.raises(NotWritableError, match="2 signatures"):
        authority.sign(tree_hash, 6, 1, key_pairs[0])
    with pytest.raises(NotWritableError, match="1 signatures of the 2"):
        authority.assemble(dict(parts[:1]))


def test_only_a_sound_key_pair_of_a_signer_can_sign() -> None:
    stranger = KeyPair.from_seed(b"\x09" * 32)
    for authority in (
        Authority.of(KEY_PAIR.public_key, None),
        authority_of(MERKLE["signer"]["manifestV1"]),
        authority_of(MERKLE["signer"]["manifestV0"]),
    ):
        assert authority.can_sign(KEY_PAIR)
        assert not authority.can_sign(stranger)
        assert not authority.can_sign(KeyPair(KEY_PAIR.public_key, stranger.secret_key))
        with pytest.raises(NotWritableError, match="not among"):
            authority.sign(tree_of(1), 1, 0, stranger)


def test_a_version_0_signer_that_allows_patches_signs_in_a_container() -> None:
    manifest = replace(default_manifest(KEY_PAIR.public_key, version=0), allow_patch=True)
    authority = Authority.of(manifest_key(manifest), manifest)
    signature = authority.sign(tree_of(4), 4, 0, KEY_PAIR)
    assert signature == b"\x01\x00\x00" + sign(authority.signable(tree_of(4), 4, 0), KEY_PAIR) + b"\x00"
    assert authority.verify(roots_of(4), 4, 0, signature)


def test_a_patch_that_is_absurdly_long_or_lacks_nodes_is_refused() -> None:
    manifest = replace(default_manifest(KEY_PAIR.public_key), allow_patch=True)
    authority = Authority.of(manifest_key(manifest), manifest)
    for patch in (1, 2**53 - 1):
        signature = b"\x01\x00" + bytes(64) + encode_uint(patch) + b"\x00"
        assert not authority.verify(roots_of(4), 4, 0, signature)


def test_a_manifest_without_signers_and_prologue_vouches_for_nothing() -> None:
    for version in (0, 1):
        manifest = Manifest(version=version, quorum=0)
        authority = Authority.of(manifest_key(manifest), manifest)
        for signature in (b"", b"\x00\x00", bytes(64)):
            assert not authority.verify(roots_of(4), 4, 0, signature)

"""Ed25519 signatures of packs, through the package cryptography: who built a pack, where its digests say that it is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bsgen.errors import ArgumentError, PackError
from bsgen.files import reason, write_atomic
from bsgen.packs.format import SIGNATURE_MAGIC, TRAILER
from bsgen.packs.pack import Pack


def sign(pack: Pack, key: str | os.PathLike[str]) -> bytes:
    """Sign a pack in place with the private key of a .pem file; replaces a signature. Gives the public key, 32 bytes."""
    private = _private(key)
    public: bytes = private.public_key().public_bytes_raw()
    unsigned = pack.path.read_bytes()[: pack.size - len(pack.trailer)]
    write_atomic(pack.path, unsigned + TRAILER.pack(SIGNATURE_MAGIC, public, private.sign(pack.digest)))
    return public


def signer(pack: Pack) -> bytes | None:
    """The public key that signed a pack, whose signature holds; None if it is not signed."""
    if not pack.trailer:
        return None
    magic, public, signature = TRAILER.unpack(pack.trailer)
    if magic != SIGNATURE_MAGIC:
        raise PackError(f"{pack.path}: ends in something that is no signature; copy it again")
    ed25519 = _library()
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, pack.digest)
    except Exception as error:
        raise PackError(f"{pack.path}: its signature does not match ({type(error).__name__}); do not use it") from None
    return bytes(public)


def check(pack: Pack, trust: str | os.PathLike[str]) -> None:
    """`PackError` unless the key `trust` (a .pem file, or 64 hexadecimal characters) signed the pack."""
    wanted, found = public_key(trust), signer(pack)
    if found is None:
        raise PackError(
            f"{pack.path}: is not signed, expected the signature of {wanted.hex()}: sign it with `bsgen pack sign`"
        )
    if found != wanted:
        raise PackError(f"{pack.path}: is signed by {found.hex()}, expected {wanted.hex()}; do not use it")


def new_key(path: Path) -> bytes:
    """Write a new private key to a .pem file that only its owner reads, and the public one beside it (.pub.pem)."""
    from cryptography.hazmat.primitives import serialization as form

    private = _library().Ed25519PrivateKey.generate()
    text = private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
    except OSError as error:
        raise ArgumentError(
            f"key: {path} cannot be made ({reason(error)}); give the name of a file that is not there"
        ) from None
    public = private.public_key()
    write_atomic(
        path.with_suffix(".pub.pem"), public.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    )
    return bytes(public.public_bytes_raw())


def public_key(trust: str | os.PathLike[str]) -> bytes:
    """The 32 bytes of a public key."""
    text = os.fspath(trust)
    try:
        if len(text) == 64 and not os.path.exists(text):
            return bytes.fromhex(text)
        return bytes(_loaded(text, "load_pem_public_key").public_bytes_raw())
    except (ValueError, AttributeError):
        raise ArgumentError(
            f"trust: {text} is no Ed25519 public key: give the .pub.pem of `bsgen pack new-key`, or 64 hexadecimal characters"
        ) from None


def _private(key: str | os.PathLike[str]) -> Any:
    private = _loaded(os.fspath(key), "load_pem_private_key", None)
    if not isinstance(private, _library().Ed25519PrivateKey):
        raise ArgumentError(f"key: {key} is no Ed25519 private key: make one with `bsgen pack new-key`")
    return private


def _loaded(path: str, loader: str, *arguments: Any) -> Any:
    _library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        return getattr(serialization, loader)(Path(path).read_bytes(), *arguments)
    except OSError as error:
        raise ArgumentError(f"key: {path} cannot be read ({reason(error)}); give the path of a .pem file") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ArgumentError(
            f"key: {path} holds no Ed25519 key in PEM form without a password: make one with `bsgen pack new-key`"
        ) from None


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ArgumentError("signatures need cryptography, which is not installed; pip install 'bsgen[sign]'") from None
    return ed25519

"""Signatures over all files of an adapter's folder, with OpenSSF's model-signing: they prove who made it.

A digest detects damage but not tampering, because whoever changes a delta can recompute it. A signature requires the
private key.
"""

import os
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from rst.errors import CheckpointError, SignatureError
from rst.extras import install_command

SIGNATURE_FILE = "model.sig"
_DIGESTS = re.compile(r": Expected .*?\)\\?', Actual .*?\)\\?'", re.DOTALL)  # raw bytes in its message
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
PathLike = str | os.PathLike[str]


def sign(
    adapter: PathLike,
    private_key: PathLike,
    *,
    password: str | None = None,
    certificate: PathLike | None = None,
    chain: Iterable[PathLike] = (),
) -> Path:
    """Sign an adapter's folder, including `rst_config.json` and the card, or a delta's file.

    >>> sign("adapter/", "private.pem")  # writes adapter/model.sig

    Args:
        adapter: the folder, or the file.
        private_key: a PEM file with a private key of an elliptic curve (P-256, P-384 or P-521).
        password: the password of the key, if it has one.
        certificate: a PEM file with the certificate of the key, for those who trust its issuer.
        chain: the certificates between this one and the issuer's own.

    Returns:
        The path of the signature: `model.sig` in the folder, or the file's name with `.sig` appended.

    Raises:
        CheckpointError: the folder or file does not exist, or model-signing is not installed.
        SignatureError: the key or a certificate cannot be read, or is of another kind.
    """
    place = Path(adapter)
    if not place.exists():
        raise CheckpointError("no such file or folder", file=place)
    signing, hashing = _import("signing"), _import("hashing")
    written = signature_of(place)
    config = signing.Config().set_hashing_config(
        hashing.Config().set_ignored_paths(paths=[written.name]).set_allow_symlinks(True)
    )
    secret = password.encode() if password else None  # in the form that cryptography expects
    try:
        if certificate is None:
            config.use_elliptic_key_signer(private_key=Path(private_key), password=secret)
        else:
            config.use_certificate_signer(
                private_key=Path(private_key),
                signing_certificate=Path(certificate),
                certificate_chain=[*map(Path, chain)] or [Path(certificate)],  # an empty chain is rejected
            )
        config.sign(place, written)
    except Exception as error:  # cryptography, OpenSSL and model-signing have no common error class
        raise SignatureError(f"cannot be signed with {private_key} ({_reason(error)})", file=place) from error
    return written


def check_signature(adapter: PathLike, trusted_keys: Iterable[PathLike]) -> Path:
    """Check that an adapter has exactly the bytes that one of the keys signed, without extra files other than git's.

    Args:
        adapter: the folder, or the delta's file.
        trusted_keys: PEM files with a public key, or with the certificate of the issuer of the signer's certificate.

    Returns:
        The first of `trusted_keys` that matches.

    Raises:
        CheckpointError: model-signing is not installed.
        SignatureError: there is no signature, another key made it, or a file was changed, added or removed since.
    """
    place = Path(adapter)
    verifying, hashing = _import("verifying"), _import("hashing")
    signature = signature_of(place)
    if not signature.is_file():
        raise SignatureError(f"is not signed; there is no {signature.name}", file=place)
    reasons = []
    for key in map(Path, trusted_keys):
        config = verifying.Config().set_hashing_config(hashing.Config().set_allow_symlinks(True))  # the hub's cache
        try:
            if _CERTIFICATE in key.read_bytes():
                config.use_certificate_verifier(certificate_chain=[key])
            else:
                config.use_elliptic_key_verifier(public_key=key)
            config.verify(place, signature)
        except Exception as error:  # as in `sign`
            reasons.append(f"{key}: {_reason(error)}")
        else:
            return key
    raise SignatureError(f"is not as any trusted key signed it ({'; '.join(reasons) or 'no key is given'})", file=place)


def signature_of(place: Path) -> Path:
    """Return the path of a folder's or file's signature, if it has one."""
    return place / SIGNATURE_FILE if place.is_dir() else place.with_name(f"{place.name}.sig")


def _reason(error: Exception) -> str:
    text = _DIGESTS.sub("", str(error)) or type(error).__name__
    return f"{text}; set RST_KEY_PASSWORD or password=" if "Password was not given" in text else text


def _import(module: str) -> Any:
    try:
        return import_module(f"model_signing.{module}")
    except ImportError as error:
        raise CheckpointError(f"signatures need model-signing: {install_command('sign')}") from error

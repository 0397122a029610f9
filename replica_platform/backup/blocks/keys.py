"""The keys that encrypt backups, from `REPLICA_BACKUP_KEY`.

Several keys are separated by spaces: the first encrypts, each decrypts. They never come into a
manifest, a report or an error; a manifest names its key by an id that is derived from it.
"""

import os

from replica_platform.backup.errors import KeyMissing
from replica_platform.blocks.cipher import KEY_BYTES, Cipher

VARIABLE = "REPLICA_BACKUP_KEY"
MAKE_ONE = 'python3 -c "import secrets; print(secrets.token_hex(32))"'


def encrypting_cipher() -> Cipher:
    """Return the cipher of new backups.

    Raises:
        KeyMissing: The environment has no key, or a wrong one.
    """
    ciphers = known_ciphers()
    if not ciphers:
        raise KeyMissing(
            f"Encrypted backups need a key in {VARIABLE}, and there is none. Make one with "
            f"`{MAKE_ONE}`, keep it in a safe place too (without it no backup can be restored), "
            "and set the variable."
        )
    return ciphers[0]


def cipher_of(key_id: str | None) -> Cipher | None:
    """Return the cipher that a manifest names; None for backups in clear.

    Raises:
        KeyMissing: The environment does not have that key.
    """
    if key_id is None:
        return None
    for cipher in known_ciphers():
        if cipher.key_id == key_id:
            return cipher
    raise KeyMissing(
        f"This backup is encrypted with the key {key_id}, which is not in {VARIABLE}; add it "
        "there, after a space."
    )


def known_ciphers() -> list[Cipher]:
    """Return the cipher of each key in the environment, that of new backups first.

    Raises:
        KeyMissing: A key is not written as it should be.
    """
    return [Cipher(_secret(text)) for text in os.environ.get(VARIABLE, "").split()]


def _secret(text: str) -> bytes:
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        # Without the text, which may be most of a key.
        raise KeyMissing(
            f"A key in {VARIABLE} is not {2 * KEY_BYTES} hexadecimal digits; make one with "
            f"`{MAKE_ONE}`."
        )
    return secret

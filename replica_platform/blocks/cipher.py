"""Encryption of blocks before they leave this host: AES-256-GCM, names by a keyed digest.

One secret gives two keys: one encrypts, the other makes the digests. So whoever reads the store but
lacks the secret cannot tell whether it holds a content that he knows. The number of blocks, their
compressed sizes and their times stay visible.
"""

import hashlib
import os

from replica_platform.blocks.errors import BlockStoreUnavailable

KEY_BYTES = 32
NONCE_BYTES = 12
DIGEST_BYTES = 20


class WrongKey(ValueError):
    """The content was encrypted with another key, or is damaged."""


class Cipher:
    """Encrypts and decrypts with one secret.

    Args:
        secret: `KEY_BYTES` random bytes.

    Raises:
        BlockStoreUnavailable: The package cryptography is missing.
    """

    def __init__(self, secret: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError as error:
            raise BlockStoreUnavailable(
                "Encrypted blocks need the `store` extra; install replica-platform[store]."
            ) from error
        assert len(secret) == KEY_BYTES
        self._aes = AESGCM(_derived(secret, b"encrypt"))
        self._digest_key = _derived(secret, b"digest")
        # Names the key without giving it away.
        self.key_id = _derived(secret, b"name")[:8].hex()

    def digest(self, content: bytes | memoryview) -> str:
        """Return the digest of a block's content under this key, in hexadecimal."""
        keyed = hashlib.blake2b(content, digest_size=DIGEST_BYTES, key=self._digest_key)
        return keyed.hexdigest()

    def seal(self, content: bytes, name: str) -> bytes:
        """Encrypt the content of an object.

        Args:
            content: The content.
            name: What is bound to it: under another name it cannot be decrypted.
        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aes.encrypt(nonce, content, name.encode())

    def unseal(self, sealed: bytes, name: str) -> bytes:
        """Decrypt what `seal` returned.

        Raises:
            WrongKey: It was encrypted with another key or under another name, or is damaged.
        """
        from cryptography.exceptions import InvalidTag

        try:
            return self._aes.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError) as error:
            raise WrongKey from error


def digest(content: bytes | memoryview) -> str:
    """Return the digest of a block's content without a key, in hexadecimal."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(key=secret, person=purpose, digest_size=KEY_BYTES).digest()

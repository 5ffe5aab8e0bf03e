"""Tokens: ids of tasks with a signature, so that nobody can make one for the task of another."""

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64encode

from pydantic import SecretStr

PURPOSE = b"fastapi-bgx task status\0"  # the same secret may sign other things elsewhere
KEY_BYTES = 32


class Tokens:
    """Signs ids of tasks, and knows what it has signed."""

    def __init__(self, secret: SecretStr | None) -> None:
        self._key = (
            secrets.token_bytes(KEY_BYTES) if secret is None else secret.get_secret_value().encode()
        )

    def token(self, task_id: str) -> str:
        """The id with its signature; safe in a URL."""
        return f"{task_id}.{self._signature(task_id)}"

    def task_id(self, token: str) -> str | None:
        """The id, if the signature is ours; takes the same time for each wrong one."""
        task_id, _, signature = token.rpartition(".")
        ours = self._signature(task_id)
        return task_id if hmac.compare_digest(ours.encode(), signature.encode()) else None

    def _signature(self, task_id: str) -> str:
        digest = hmac.digest(self._key, PURPOSE + task_id.encode(), hashlib.sha256)
        return urlsafe_b64encode(digest).decode().rstrip("=")

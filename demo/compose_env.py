"""`make compose-env`: writes .env, with a new secret for each name of .env.example. Needs nothing but Python."""

import base64
import os
import secrets
from pathlib import Path

ROOT = Path(__file__).parent.parent


def write(file: Path = ROOT / ".env") -> int:
    """Returns 1, and changes nothing, if the file exists, because the databases' volumes keep their passwords."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    filled = [f"{line}{_secret()}" for line in lines if line.endswith("=")]
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(f"{file} is there already and stays as it is")
        return 1
    with open(descriptor, "w") as output:
        output.write("\n".join(filled) + "\n")
    print(f"Wrote {file}. Next: docker compose up, then http://127.0.0.1:8080; user admin, password in that file")
    return 0


def _secret() -> str:
    """32 bytes in Fernet's encoding, which is safe in URIs, JSON and shells too."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


if __name__ == "__main__":
    raise SystemExit(write())

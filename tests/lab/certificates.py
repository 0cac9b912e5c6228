"""Certificates that sign themselves, for servers with TLS."""

import subprocess
from pathlib import Path

from tests.lab.wrapped import need

NEW = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """A certificate for these names (`DNS:…`, `IP:…`) and its key, as files (PEM) that every account can read.

    A client that is given the certificate as an authority accepts it.
    """
    need("openssl")
    files = folder / "certificate.pem", folder / "certificate.key"
    names_of = ("-subj", "/CN=test", "-addext", f"subjectAltName={','.join(names)}")
    words = (*NEW.split(), *names_of, "-out", str(files[0]), "-keyout", str(files[1]))
    subprocess.run(words, check=True, capture_output=True, timeout=30)
    files[1].chmod(0o644)
    return files

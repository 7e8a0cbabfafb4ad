"""TLS contexts for SIP: certificates are read again when their files change, and connections
that are up keep theirs."""

from __future__ import annotations

import ssl
from pathlib import Path


class Certificates:
    """Our certificate for phones and carriers, and whom we believe when we call them."""

    def __init__(self, cert_file: str, key_file: str, ca_file: str = "") -> None:
        """``ca_file``: authorities of carriers' certificates; empty: the system's. Raises
        OSError or ssl.SSLError when a file cannot be used."""
        self._files = (cert_file, key_file)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.client = ssl.create_default_context(cafile=ca_file or None)
        for context in (self.server, self.client):
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(cert_file, key_file)
        self._read = self._stamp()

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        return tuple((s.st_mtime_ns, s.st_ino) for s in (Path(name).stat() for name in self._files))

    def reload(self) -> bool:
        """Reads certificate and key again when a file changed: new handshakes use them.
        Raises OSError or ssl.SSLError on files that do not fit together (yet); the old
        ones stay in use."""
        stamp = self._stamp()
        if stamp == self._read:
            return False
        # a pair that does not fit must not reach the contexts in use
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
        for context in (self.server, self.client):
            context.load_cert_chain(*self._files)
        self._read = stamp
        return True

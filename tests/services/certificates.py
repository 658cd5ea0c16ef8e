"""Certificates for the private services: an authority of their own, a server's certificate, and bad ones."""

import subprocess

from service import ServiceError, executable


class Certificates:
    """Files in a folder. The server's are for the name `localhost` alone, so that an address is a wrong name."""

    def __init__(self, folder):
        self.folder = folder
        self.ca = folder / "ca.pem"
        self.stranger = folder / "stranger.pem"
        self.server = folder / "server.pem"
        self.server_key = folder / "server.key"
        self.expired = folder / "expired.pem"

    def make(self):
        self.folder.mkdir()
        for authority in (self.ca, self.stranger):
            self._openssl(
                *("req", "-x509", *self._new_key(authority.with_suffix(".key")), "-days", "30"),
                *("-subj", f"/CN=tests {authority.stem}", "-out", authority),
            )
        request = self.folder / "server.csr"
        self._openssl(
            *("req", "-new", *self._new_key(self.server_key), "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-out", request),
        )
        # Of no days: it has expired a second after it was made, long before anything listens.
        for certificate, days in ((self.server, 30), (self.expired, 0)):
            self._openssl(
                *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.ca.with_suffix(".key")),
                *("-days", str(days), "-copy_extensions", "copy", "-out", certificate),
            )

    def exports(self):
        return {"TEST_TLS_CA": str(self.ca), "TEST_TLS_STRANGER": str(self.stranger)}

    def _new_key(self, path):
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path)

    def _openssl(self, *arguments):
        command = [executable("openssl"), *arguments]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        if result.returncode != 0:
            raise ServiceError(f"openssl {arguments[0]} failed:\n{result.stderr}")

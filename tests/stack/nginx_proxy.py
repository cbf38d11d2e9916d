"""A real nginx that runs the stack's own configuration on loopback."""

import json
import os
import shutil
import socket
import ssl
import subprocess
from contextlib import suppress

import httpx
from live_server import PATIENCE_S, until
from processes import end

from compose_file import REPOSITORY, service

TEMPLATE = REPOSITORY / "deploy" / "nginx" / "nginx.conf.template"
PREFIX = "/llm"
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian has it, and PATH often has not


class NginxProxy:
    """The proxy of docker-compose.yml before ``upstream``, started; ``values`` are variables of its template.

    What docker-compose.yml says of a variable holds, but for paths and addresses, which are of this machine.
    """

    def __init__(self, folder, secrets, upstream, *, prefix="", **values):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"https://localhost:{port}{prefix}"
        self.port = port
        self.log, self.errors = folder / "access.log", folder / "error.log"
        self.trust = ssl.create_default_context(cafile=secrets / "tls.crt")
        told = service("proxy")["environment"] | {
            "PROXY_RUN_DIR": str(folder),
            "PROXY_LISTEN": f"127.0.0.1:{port}",
            "PROXY_UPSTREAM": upstream,
            "PROXY_PREFIX": prefix,
            "PROXY_TLS_CERTIFICATE": str(secrets / "tls.crt"),
            "PROXY_TLS_KEY": str(secrets / "tls.key"),
        }
        told |= {name: str(value) for name, value in values.items()}
        self.told = {name: value for name, value in told.items() if name.startswith("PROXY_")}
        configuration = folder / "nginx.conf"
        configuration.write_text(self._filled(), encoding="utf-8")
        # Workers of a master that is root become another user, who may not read the folders of tests.
        options = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
        command = [_found("nginx"), "-e", "stderr", "-p", folder, "-c", configuration, "-g", options]
        with self.log.open("wb") as log, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=errors)
        until(self._listens)

    def client(self, key=None, **options):
        """A client of it that trusts its certificate, and follows no redirect."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        options = {"verify": self.trust, "timeout": PATIENCE_S, "trust_env": False, **options}
        return httpx.Client(base_url=self.url, headers=headers, **options)

    def logged(self, request_id):
        """The line of its log about a request, once it is there."""
        return until(lambda: next((line for line in self._lines() if line["request_id"] == request_id), None))

    def stop(self):
        """End it at once, and wait until it is gone."""
        end(self.process)

    def log_tail(self):
        return self.errors.read_text(errors="replace")[-3000:] + self.log.read_text(errors="replace")[-3000:]

    def _filled(self):
        """The template as the image of docker-compose.yml fills it in."""
        names = " ".join(f"${{{name}}}" for name in self.told)
        with TEMPLATE.open("rb") as template:
            done = subprocess.run(
                [_found("envsubst"), names], stdin=template, env=self.told, capture_output=True, check=True
            )
        return done.stdout.decode()

    def _listens(self):
        assert self.process.poll() is None, f"nginx ended while starting:\n{self.errors.read_text()}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def _lines(self):
        *whole, _ = self.log.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in whole]


def _found(command):
    where = shutil.which(command, path=_PATH)
    assert where is not None, f"there is no {command}: apt-get install nginx gettext-base"
    return where

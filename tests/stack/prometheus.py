"""A real Prometheus that reads a server by the stack's own configuration, on loopback."""

import os
import shutil
import socket
import subprocess
from contextlib import suppress

import httpx
import yaml
from live_server import PATIENCE_S, until
from processes import end

from compose_file import REPOSITORY

CONFIGURATION = REPOSITORY / "deploy" / "prometheus" / "prometheus.yml"


class Prometheus:
    """The stack's Prometheus, started. Only what is the containers' is another: address, key file and the interval."""

    def __init__(self, folder, secrets, target):
        configuration = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
        configuration["global"]["scrape_interval"] = "1s"
        (job,) = configuration["scrape_configs"]
        job["scrape_timeout"] = "1s"
        job["authorization"]["credentials_file"] = str(secrets / "metrics_key")
        job["static_configs"] = [{"targets": [target]}]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{address}"
        self.log = folder / "prometheus.log"
        path = shutil.which("prometheus", path=os.environ.get("PATH", "") + ":/usr/bin")
        assert path, "Prometheus is not installed: on Debian, apt-get install prometheus"
        command = [path, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--web.listen-address={address}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._http = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)
        until(self._is_ready)

    def get(self, path, **parameters):
        """The data of an answer of its API, which must be a success."""
        told = self._http.get(f"/api/v1/{path}", params=parameters).json()
        assert told["status"] == "success", told
        return told["data"]

    def series(self, expression):
        """What the expression is now: labels and value of each of its series."""
        return [(one["metric"], float(one["value"][1])) for one in self.get("query", query=expression)["result"]]

    def stop(self):
        """End it, and wait until it is gone."""
        self._http.close()
        end(self.process)

    def log_tail(self):
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]

    def _is_ready(self):
        assert self.process.poll() is None, f"Prometheus ended while starting:\n{self.log_tail()}"
        with suppress(httpx.TransportError):
            return self._http.get("/-/ready").status_code == 200
        return False

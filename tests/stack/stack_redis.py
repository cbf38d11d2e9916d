"""A real redis-server that runs with the very flags and users of the stack."""

import socket
import subprocess
from contextlib import suppress

import redis
from benchmarks.own_redis import find_redis_server
from live_server import PATIENCE_S, until
from processes import end

from compose_file import service


class StackRedis:
    """The Redis of docker-compose.yml on loopback, started; its data is in ``folder``."""

    def __init__(self, folder, secrets):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        here = {"/data": str(folder), "/run/secrets/redis_acl": str(secrets / "redis.acl")}
        _, *flags = service("redis")["command"]
        self._log = folder / "redis.log"
        command = [str(find_redis_server()), *(here.get(flag, flag) for flag in flags)]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--logfile", self._log]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        until(self._answers)

    def ask(self, user, password, *command):
        """What it says to a user's command."""
        how = {"protocol": 2, "driver_info": None, "socket_timeout": PATIENCE_S, "decode_responses": True}
        with redis.Redis(port=self.port, username=user, password=password, **how) as client:
            return client.execute_command(*command)

    def stop(self):
        """End it in an orderly way, and wait until it is gone."""
        end(self.process)

    def _answers(self):
        assert self.process.poll() is None, self._log.read_text(errors="replace")
        with suppress(redis.RedisError):
            return bool(self.ask("health", "health", "PING"))
        return False

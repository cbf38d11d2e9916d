"""The end of what tests started."""

import subprocess

from live_server import PATIENCE_S


def end(process):
    """End it in an orderly way, and wait until it is gone."""
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

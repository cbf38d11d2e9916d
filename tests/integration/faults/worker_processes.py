"""The processes of a module's one fork server, and whether launches go on working."""

from contextlib import aclosing

import psutil

from contracts import ask, listen, unheard

HEARTBEAT_TIMEOUT_S = 3.0
PATIENCE_S = 60.0


def fork_server():
    (found,) = [child for child in psutil.Process().children() if "inferapi.worker.forkserver" in child.cmdline()]
    return found


def worker():
    """The only worker of this module's fork server."""
    (found,) = fork_server().children()
    return found


async def answers(launcher, spec):
    """A launch from here on works, and so does what it launched."""
    async with aclosing(await launcher.launch(spec, unheard)) as engine:
        return (await listen(engine, ask()))[-1].finish is not None

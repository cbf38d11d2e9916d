"""The fork server: imports torch and transformers once, then forks a worker in milliseconds.

Started by ``launcher.py`` as ``python -m inferapi.worker.forkserver FD LEVEL FORMAT``. It runs no thread and
touches no GPU before a fork; the only work it does is to fork, to kill and to bury. It ends, and everything
with it, when the API process does, however that ends.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress

import msgspec

from inferapi.logs import configure_logging
from inferapi.worker.messages import (
    NO_MEMORY_STATUS,
    NOT_FORKED_STATUS,
    Exited,
    Fork,
    Forked,
    Kill,
    ToForkServer,
    encode,
)

log = logging.getLogger(__name__)

PRELOAD = (
    "inferapi.worker.process",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    # The families met most often: what a load would import otherwise, half a second and more.
    "transformers.models.llama.modeling_llama",
    "transformers.models.mistral.modeling_mistral",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.gpt2.modeling_gpt2",
)
_PACKET_BYTES = 4096
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that made it is gone (Linux)."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone already
        os._exit(1)


class ForkServer:
    """One packet in, one act."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._decoder = msgspec.msgpack.Decoder(ToForkServer)
        self._pids: dict[int, int] = {}  # worker id -> process id

    def serve(self) -> None:
        """Work until the API process closes its end."""
        wakeup_read, wakeup_write = socket.socketpair()
        wakeup_read.setblocking(False)
        wakeup_write.setblocking(False)
        signal.set_wakeup_fd(wakeup_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(wakeup_read, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if wakeup_read in ready:
                    wakeup_read.recv(_PACKET_BYTES)
                    self._bury()
                if self._control in ready and not self._obey():
                    break
        signal.set_wakeup_fd(-1)
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)  # when this process ends, their memory is back

    def _obey(self) -> bool:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, _PACKET_BYTES, 1)
        except ConnectionResetError:  # the API process ended before it read all that was sent to it
            return False
        if not packet:
            return False
        message = self._decoder.decode(packet)
        if isinstance(message, Fork):
            try:
                self._fork(message.worker_id, descriptors[0])
            except (OSError, IndexError):  # no process, or no descriptor, to be had; those that live go on
                log.exception("no worker could be forked")
                for descriptor in descriptors:
                    os.close(descriptor)
                self._control.send(encode(Exited(message.worker_id, NOT_FORKED_STATUS)))
        elif isinstance(message, Kill) and message.worker_id in self._pids:
            os.kill(self._pids[message.worker_id], signal.SIGKILL)
        return True

    def _fork(self, worker_id: int, descriptor: int) -> None:
        pid = os.fork()
        if pid:
            self._pids[worker_id] = pid
            os.close(descriptor)
            with suppress(OSError):  # the API process may be gone; serve() sees that next
                self._control.send(encode(Forked(worker_id)))
            return
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            die_with_parent()
            from inferapi.worker.process import run_worker  # noqa: PLC0415 - imported by PRELOAD, before the fork

            status = run_worker(socket.socket(fileno=descriptor))
        except BaseException as error:
            if isinstance(error, MemoryError):
                status = NO_MEMORY_STATUS
            log.exception("a worker ended by an error")
        finally:
            with suppress(OSError):
                sys.stderr.flush()
            os._exit(status)  # no exit handlers: they are the fork server's

    def _bury(self) -> None:
        for worker_id, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[worker_id]
                exited = Exited(worker_id, os.waitstatus_to_exitcode(status))
                with suppress(OSError):  # the API process may be gone; serve() sees that next
                    self._control.send(encode(exited))


def main() -> None:
    """Preload, then serve. Arguments: the control socket's descriptor, the log level, ``text`` or ``json``."""
    die_with_parent()
    configure_logging(sys.argv[2], as_text=sys.argv[3] == "text")
    # Ctrl-C and SIGTERM are the API process's business, which drains first: terminals and supervisors send them
    # to every process. Workers inherit this; they end with their socket, or are killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()  # what modules make stays: looking through it again and again takes a quarter of the time
    for module in PRELOAD:
        importlib.import_module(module)
    with suppress(Exception):  # fills a cache of compiled patterns that every load reads; worth 0.15 s to it
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    gc.enable()
    gc.collect()
    gc.freeze()  # a collection in a worker would touch, and so copy, every page it shares with this one
    ForkServer(control).serve()


if __name__ == "__main__":
    main()

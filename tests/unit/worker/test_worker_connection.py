"""The worker's end of the socket: several threads send, and reports are few and in order."""

from __future__ import annotations

import socket
import threading

import msgspec
import pytest

from inferapi.domain.states import ModelState
from inferapi.worker.connection import Connection, ProgressSender
from inferapi.worker.messages import HEADER_BYTES, Beat, FromWorker, Progress, body_bytes


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def received(sock, number):
    """That many messages, whole and in order."""
    with sock.makefile("rb") as file:
        decoder = msgspec.msgpack.Decoder(FromWorker)
        return [decoder.decode(file.read(body_bytes(file.read(HEADER_BYTES)))) for _ in range(number)]


def test_messages_of_several_threads_do_not_mix(ends):
    ours, theirs = ends
    connection, each = Connection(ours), 500

    def send(thread):
        for number in range(each):
            connection.send(Beat(1000 * thread + number))

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    numbers = [message.memory_bytes for message in received(theirs, 3 * each)]
    for thread in threads:
        thread.join(60)
    for thread in range(3):
        assert [number for number in numbers if number // 1000 == thread] == list(
            range(1000 * thread, 1000 * thread + each)
        )


def test_a_beat_does_not_wait_behind_a_message_that_nobody_reads(ends):
    ours, theirs = ends
    connection = Connection(ours)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    large, begun = [Beat(number) for number in range(50_000)], threading.Event()

    def send_all():
        for message in large:
            connection.send(message)
            begun.set()

    sending = threading.Thread(target=send_all)
    sending.start()
    begun.wait(60)
    while not connection._sending.locked():  # until the socket is full, and its sender waits with the lock
        pass
    connection.send_if_free(Beat(-1))
    arrived = [message.memory_bytes for message in received(theirs, len(large))]
    sending.join(60)
    assert [number for number in arrived if number >= 0] == list(range(len(large) - arrived.count(-1)))


def test_a_connection_that_was_closed_ends_in_none_here_and_an_error_there(ends):
    ours, theirs = ends
    connection = Connection(ours)
    theirs.close()
    assert connection.receive() is None
    with pytest.raises(OSError):
        connection.send(Beat(1))


class Reports:
    """Where a ``ProgressSender`` sends, and its clock."""

    def __init__(self):
        self.sent = []
        self.now_s = 0.0
        self.sender = ProgressSender(self.sent.append, lambda: self.now_s)

    def report(self, now_s, stage, done_bytes, total_bytes=100):
        self.now_s = now_s
        self.sender(stage, done_bytes, total_bytes)


def test_reports_come_at_most_every_fiftieth_of_a_second_but_for_the_ends_of_a_stage():
    reports = Reports()
    for number in range(101):
        reports.report(number / 1000, ModelState.LOADING, number)
    assert reports.sent == [Progress(ModelState.LOADING, done, 100) for done in (0, 50, 100)]


def test_a_stage_never_goes_backwards():
    reports = Reports()
    for now_s, done_bytes in ((0.0, 0), (1.0, 60), (2.0, 0), (3.0, 60), (4.0, 61)):
        reports.report(now_s, ModelState.LOADING, done_bytes)
    assert [report.done_bytes for report in reports.sent] == [0, 60, 61]


def test_the_next_stage_is_told_at_once_and_begins_anew():
    reports = Reports()
    reports.report(0.0, ModelState.LOADING, 100)
    reports.report(0.0, ModelState.WARMING, 0, 200)
    reports.report(0.0, ModelState.WARMING, 0, 200)
    assert reports.sent == [Progress(ModelState.LOADING, 100, 100), Progress(ModelState.WARMING, 0, 200)]


def test_a_report_to_nobody_is_no_error_of_the_load():
    def refuse(_):
        raise BrokenPipeError

    ProgressSender(refuse)(ModelState.LOADING, 0, 1)
    reports = Reports()
    reports.report(0.0, ModelState.LOADING, 0)
    assert reports.sent == [Progress(ModelState.LOADING, 0, 100)]

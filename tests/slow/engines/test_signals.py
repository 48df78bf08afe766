"""Signal libraries keep a receiver by a weak reference to its method."""

import weakref
from typing import Any

from batchify import batched

from .components import component


class Receiver:
    def __init__(self) -> None:
        self.received: list[Any] = []

    @batched(batch_size=2)
    def receive(self, sender: list[Any], *, signal: Any) -> list[Any]:
        self.received += sender
        return sender


def test_django_signal_is_received_by_a_batched_method_as_long_as_its_instance_lives() -> None:
    component("django")
    from django.dispatch import Signal

    signal = Signal()
    receiver = Receiver()
    signal.connect(receiver.receive, weak=True)
    assert [answer for _, answer in signal.send(sender="one")] == ["one"]
    assert receiver.received == ["one"]
    gone = weakref.ref(receiver)
    del receiver
    assert gone() is None
    assert signal.send(sender="two") == []

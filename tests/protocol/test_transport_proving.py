"""A door is told from whoever else is at an address by its key."""

import socket
from contextlib import closing

from protocol.transport import FOR_STRANGERS, KeyPair, ZmqInbox
from protocol.transport.proving import proves_key


def test_door_proves_its_own_key_and_no_other():
    keys = KeyPair.generate()
    with closing(ZmqInbox(lambda _: None, keys=keys, limits=FOR_STRANGERS)) as door:
        door.start()
        assert proves_key(door.peer.endpoint, keys.public, 10.0)
        assert not proves_key(door.peer.endpoint, KeyPair.generate().public, 0.5)


def test_who_is_silent_or_absent_or_no_address_proves_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not proves_key(f"tcp://127.0.0.1:{silent.getsockname()[1]}", KeyPair.generate().public, 0.2)
    assert not proves_key("tcp://127.0.0.1:1", KeyPair.generate().public, 0.2)
    assert not proves_key("tcp://:::", KeyPair.generate().public, 0.2)

"""A scanner's side of the MRD streaming protocol, of the `ismrmrd` package's own pieces."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import ismrmrd
import pytest
from ismrmrd.serialization import ConfigFile, ProtocolDeserializer, ProtocolSerializer

Address = tuple[str, int]


def scan(address: Address, header: str, lines: Iterable[Any]) -> tuple[list[Any], list[str]]:
    """Send a whole scan; the images and the texts that came back before the server said that it is done."""
    return exchange(address, [ConfigFile("larmor"), ismrmrd.xsd.CreateFromDocument(header), *lines])


def exchange(address: Address, objects: Iterable[Any], raw: bytes = b"", end: bool = True) -> tuple[list[Any], Any]:
    """As `scan`, of any objects of the protocol and then any bytes."""
    with socket.create_connection(address, timeout=60) as connection, closing(connection.makefile("rwb")) as stream:
        try:
            serializer = ProtocolSerializer(stream)
            for item in objects:
                serializer.serialize(item)
            stream.write(raw)
            if end:
                serializer.close()
            stream.flush()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has said why
        received = list(ProtocolDeserializer(stream).deserialize())
    images = [item for item in received if isinstance(item, ismrmrd.Image)]
    return images, [item for item in received if isinstance(item, str)]


def gadgetron_scan(address: Address, header: str, lines: Iterable[Any]) -> list[Any]:
    """As `scan`, by the readers and writers of Gadgetron's own package: the images. Skips where it is not installed."""
    pytest.importorskip("gadgetron", reason="pip install gadgetron")
    from gadgetron.external import constants, readers, writers
    from gadgetron.external.connection import Connection

    with socket.create_connection(address, timeout=60) as connection:
        wire, images = Connection.SocketWrapper(connection), []
        for number, text in ((constants.GADGET_MESSAGE_CONFIG, "<x/>"), (constants.GADGET_MESSAGE_HEADER, header)):
            content = text.encode()
            wire.write(constants.GadgetMessageIdentifier.pack(number) + constants.uint32.pack(len(content)) + content)
        for item in lines:
            writers.write_acquisition(wire, item)
        wire.write(constants.GadgetMessageIdentifier.pack(constants.GADGET_MESSAGE_CLOSE))
        while (number := readers.read(wire, constants.GadgetMessageIdentifier)) != constants.GADGET_MESSAGE_CLOSE:
            assert number == constants.GADGET_MESSAGE_ISMRMRD_IMAGE
            images.append(readers.read_image(wire))
    return images

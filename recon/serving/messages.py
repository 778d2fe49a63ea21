"""The messages of the MRD streaming protocol over a socket: what is read is bounded in size and in time.

A message is an identifier (uint16, little-endian) and its content; acquisitions, images and waveforms are as the
`ismrmrd` package serialises them.

Source: the constants of Gadgetron and of python-ismrmrd-server, `ismrmrd.serialization`.
"""

from __future__ import annotations

import ctypes
import io
import socket
import struct
import time
from enum import IntEnum
from typing import Any

import numpy as np

from larmor.storage.objects.errors import InputError

LARGEST_TEXT = 2**24
"""Bytes of a header, a configuration or a text."""
LARGEST_LINE = 2**26
"""Bytes of the samples and the trajectory of an acquisition, or of a waveform."""
_CONFIG_FILE_BYTES = 1024
_IDENTIFIER, _LENGTH = struct.Struct("<H"), struct.Struct("<I")
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 2**26


class Message(IntEnum):
    """The identifiers that are spoken here."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    ACQUISITION = 1008
    IMAGE = 1022
    WAVEFORM = 1026


class HungUp(Exception):
    """The other side closed the connection without a message that says so."""


class Wire:
    """One connection. `patience`: seconds that may pass before a message begins, and that it may take."""

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._socket, self._patience = connection, patience
        self._deadline = 0.0

    def receive(self) -> tuple[Message, Any]:
        """The next message: a line as (header bytes, (coil, sample) complex64), a header or text as bytes, else None.

        Raises `InputError` for an unknown, unexpected or too large message, `TimeoutError` for one that does not come,
        and `HungUp`.
        """
        self._deadline = time.monotonic() + self._patience
        first = self._read(_IDENTIFIER.size)
        self._deadline = time.monotonic() + self._patience
        (number,) = _IDENTIFIER.unpack(first)
        if number not in list(Message) or number == Message.IMAGE:
            known = ", ".join(f"{kind.value} {kind.name}" for kind in Message if kind != Message.IMAGE)
            raise InputError(f"message {number} is not understood; known are {known}")
        kind = Message(number)
        if kind == Message.ACQUISITION:
            return kind, self._acquisition()
        if kind == Message.WAVEFORM:
            self._pass_waveform()
            return kind, None
        if kind == Message.CONFIG_FILE:
            return kind, self._read(_CONFIG_FILE_BYTES)
        return kind, None if kind == Message.CLOSE else self._text(kind)

    def send_image(self, image: Any) -> None:
        """Send an `ismrmrd.Image`. Raises `OSError` if the other side does not take it."""
        content = io.BytesIO()
        content.write(_IDENTIFIER.pack(Message.IMAGE))
        image.serialize_into(content.write)
        self._send(content.getvalue())

    def send_text(self, text: str) -> None:
        content = text.encode()[:LARGEST_TEXT]
        self._send(_IDENTIFIER.pack(Message.TEXT) + _LENGTH.pack(len(content)) + content)

    def send_close(self) -> None:
        self._send(_IDENTIFIER.pack(Message.CLOSE))

    def linger(self) -> None:
        """Take what the other side is still sending, for a while: closing before would discard what it has to read."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._deadline, left = time.monotonic() + _LINGER_SECONDS, _LINGER_BYTES
            while left > 0:
                self._socket.settimeout(max(self._deadline - time.monotonic(), 1e-3))
                got = len(self._socket.recv(2**16))
                if not got or time.monotonic() > self._deadline:
                    return
                left -= got
        except OSError:
            pass  # gone already

    def _send(self, content: bytes) -> None:
        self._socket.settimeout(self._patience)
        self._socket.sendall(content)

    def _read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        content = bytearray(size)
        view, got = memoryview(content), 0
        while got < size:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            more = self._socket.recv_into(view[got:])
            if not more:
                raise HungUp
            got += more
        return bytes(content)

    def _text(self, kind: Message) -> bytes:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        self._check(kind, length, LARGEST_TEXT)
        return self._read(length)

    def _acquisition(self) -> tuple[bytes, np.ndarray]:
        import ismrmrd

        head = self._read(ctypes.sizeof(ismrmrd.AcquisitionHeader))
        about = ismrmrd.AcquisitionHeader.from_buffer_copy(head)
        size = about.number_of_samples * (8 * about.active_channels + 4 * about.trajectory_dimensions)
        self._check(Message.ACQUISITION, size, LARGEST_LINE)
        if not about.number_of_samples or not about.active_channels:
            raise InputError("an acquisition has no samples or no channels; correct its header")
        parts = iter([head])
        line = ismrmrd.Acquisition.deserialize_from(lambda count: next(parts, None) or self._read(count))
        return head, line.data

    def _pass_waveform(self) -> None:
        import ismrmrd

        head = self._read(ctypes.sizeof(ismrmrd.WaveformHeader))
        about = ismrmrd.WaveformHeader.from_buffer_copy(head)
        size = 4 * about.channels * about.number_of_samples
        self._check(Message.WAVEFORM, size, LARGEST_LINE)
        self._read(size)

    def _check(self, kind: Message, size: int, largest: int) -> None:
        if size > largest:
            raise InputError(f"a message {kind.value} {kind.name} announces {size} bytes; at most {largest} are taken")

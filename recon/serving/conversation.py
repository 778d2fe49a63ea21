"""One scan over one connection: configuration, header, lines in; images, texts and the end out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from larmor.recon.serving.messages import Message, Wire
from larmor.storage.formats.measured import MeasuredKspace
from larmor.storage.formats.mrd_stream import StreamedScan, StreamedSlice
from larmor.storage.objects.errors import InputError

Reconstruct = Callable[[MeasuredKspace], np.ndarray]
"""k-space to images (slice, height, width) float32; raises `InputError` for what the model does not take."""


def converse(wire: Wire, reconstruct: Reconstruct) -> None:
    """Answer every slice with its image until the other side ends the scan.

    The configuration is read and not used: the server has one model. Raises `InputError` for what is wrong with a
    message, and as `Wire` does.
    """
    scan: StreamedScan | None = None
    configured, sent = False, 0
    while True:
        kind, content = wire.receive()
        if kind == Message.CLOSE:
            break
        if kind in (Message.CONFIG_FILE, Message.CONFIG_TEXT):
            if configured or scan:
                raise InputError("a second configuration, or one after the header; send one, first")
            configured = True
        elif kind == Message.HEADER:
            if scan:
                raise InputError("a second header; open another connection for another scan")
            scan = StreamedScan(content)
        elif kind == Message.ACQUISITION:
            if scan is None:
                raise InputError("an acquisition before the header; send the XML of the scan first")
            if ready := scan.add(*content):
                sent = _answer(wire, ready, reconstruct, sent)
    for ready in scan.finish() if scan else ():
        sent = _answer(wire, ready, reconstruct, sent)
    wire.send_close()


def _answer(wire: Wire, ready: StreamedSlice, reconstruct: Reconstruct, sent: int) -> int:
    wire.send_image(image_of(reconstruct(ready.source), ready, sent + 1))
    return sent + 1


def image_of(images: np.ndarray, ready: StreamedSlice, number: int) -> Any:
    """(slice, height, width) as an `ismrmrd.Image` where its lines were measured: x is the readout, y the phase
    encoding."""
    import ismrmrd

    line = ismrmrd.AcquisitionHeader.from_buffer_copy(ready.head)
    header = ismrmrd.ImageHeader.from_acquisition(
        line, image_type=ismrmrd.IMTYPE_MAGNITUDE, image_index=number, image_series_index=1
    )
    if ready.field_of_view:
        header.field_of_view[:] = ready.field_of_view
    image = ismrmrd.Image(header, data=np.ascontiguousarray(images.transpose(0, 2, 1)[None]))
    image.meta = {
        "DataRole": "Image",
        "ImageProcessingHistory": "Larmor",
        "ImageComments": "reconstructed by a network; research use only",
        "Keep_image_geometry": "1",
        "ImageRowDir": [f"{value:.18f}" for value in line.read_dir],
        "ImageColumnDir": [f"{value:.18f}" for value in line.phase_dir],
    }
    return image

"""One scan from a pipe to a pipe in MRD 2: an image goes out as soon as its slice is complete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from larmor.recon.models.model import Model
from larmor.recon.serving.conversation import image_of
from larmor.recon.serving.slices import check_model, reconstruct_slices
from larmor.storage.formats.mrd2 import check_installed, ismrmrd_document, ismrmrd_line, mrd2_image
from larmor.storage.formats.mrd2_items import ItemReader, ItemWriter, Sink
from larmor.storage.formats.mrd_stream import StreamedScan, StreamedSlice
from larmor.storage.objects.errors import InputError


def reconstruct_stream(model: Model, source: BinaryIO, to: Sink) -> int:
    """Read an MRD 2 stream and write its images as one, with the same header; how many there are.

    Raises `InputError` for a model that does not reconstruct slice by slice, for a stream that cannot be read or
    reconstructed, and where nobody reads the images. The stream that was written is then not ended, so that its reader
    knows that it is not whole.
    """
    check_model(model)
    check_installed()
    reader, count = ItemReader(source), 0
    header = reader.header()
    scan = StreamedScan(ismrmrd_document(header))
    try:
        writer = ItemWriter(to, header)
        for count, ready in enumerate(_slices(reader, scan), start=1):
            writer.write(mrd2_image(image_of(reconstruct_slices(model, ready.source), ready, count)))
        writer.end()
    except BrokenPipeError as error:
        raise InputError(f"nobody reads the images any more; {count} were made") from error
    return count


def _slices(reader: ItemReader, scan: StreamedScan) -> Iterator[StreamedSlice]:
    for acquisition in reader.acquisitions():
        if ready := scan.add(*ismrmrd_line(acquisition)):
            yield ready
    yield from scan.finish()

#!/usr/bin/env python3
"""A decoder process of the tuned worker: fetches ahead, decodes, and leaves pixels in shared memory.

Started by tuned.py, which holds the other end of its socket. Every job that comes in is answered, in the order in which
the downloads end. obstore downloads on threads of its own, written in Rust: they go on while the loop here decodes.
Pixels are uint8 `[3, height, width]`, in the slot of the shared memory that came with the job.
"""

import asyncio
import hashlib
import io
import mmap
import os
import pickle
import socket
import sys
from dataclasses import dataclass

# Pillow keeps up to 64 blocks of a mebibyte instead of returning them to the system, which else has to clear 48 MB of
# fresh pages for every image of 12 megapixels. Read when Pillow is loaded.
os.environ.update(PILLOW_BLOCK_SIZE="1m", PILLOW_BLOCKS_MAX="64")

import numpy as np  # noqa: E402
import obstore  # noqa: E402
import uvloop  # noqa: E402
from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer  # noqa: E402
from obstore.store import S3Store  # noqa: E402
from PIL import ExifTags, Image, UnidentifiedImageError  # noqa: E402

import records  # noqa: E402

MESSAGE_BYTES = 1 << 16
# What undoes each EXIF orientation, as in Pillow's ImageOps.exif_transpose. It is done to the small image.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {5, 6, 7, 8}


@dataclass(frozen=True)
class Orders:
    """What a decoder is told once. The size is width and height; `scaled` decodes JPEGs no larger than needed."""

    settings: records.Settings
    size: tuple
    scaled: bool


class Preparer:
    """Bytes of an image → its pixels at the detector's size."""

    def __init__(self, size, scaled):
        self.size, self.scaled = size, scaled
        self.resizer = Resizer()
        # Pillow's bicubic kernel, but with SIMD, and in Pillow's own memory: a copy would cost more than the resize.
        self.options = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.catmull_rom))
        self.targets = {size: Image.new("RGB", size) for size in (size, size[::-1])}

    def prepare(self, data, pixels):
        """Fills `pixels`, and returns format, width and height."""
        with Image.open(io.BytesIO(data)) as picture:
            name, (width, height) = picture.format.lower(), picture.size
            # EXIF is in a JPEG's first segments, and parsing what is not there takes time.
            known_plain = name == "jpeg" and data.find(b"Exif\0", 0, MESSAGE_BYTES) < 0
            orientation = 1 if known_plain else picture.getexif().get(ExifTags.Base.Orientation, 1)
            target = self.targets[self.size[::-1] if orientation in SIDEWAYS else self.size]
            if self.scaled:
                # libjpeg then decodes at a half, a quarter or an eighth, but to 1.9 times the target's size at least.
                picture.draft("RGB", (19 * target.width // 10, 19 * target.height // 10))
            picture.load()
            source = picture if picture.mode == "RGB" else picture.convert("RGB")
            self.resizer.resize_pil(source, target, self.options)
        if method := UPRIGHT.get(orientation):
            target = target.transpose(method)
        for plane, channel in zip(pixels, target.split()):
            plane[:] = channel
        return name, width, height


class Decoder:
    def __init__(self, orders, link, memory):
        self.settings, self.link = orders.settings, link
        self.preparer = Preparer(orders.size, orders.scaled)
        self.slots = slots(memory, orders.size)
        self.stores = {}
        self.tasks = set()

    async def run(self):
        """Answers jobs until the other end is closed."""
        self.ended = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self.link.fileno(), self.on_job)
        await self.ended

    def on_job(self):
        message = self.link.recv(MESSAGE_BYTES)
        if not message:
            asyncio.get_running_loop().remove_reader(self.link.fileno())
            self.ended.set_result(None)
            return
        task = asyncio.ensure_future(self.answer(*pickle.loads(message)))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, tag, slot, bucket, key):
        """Sends the tag with a `records.Image` and None, or with what is wrong."""
        try:
            found = await obstore.get_async(self.store(bucket), key)
            etag = found.meta["e_tag"].strip('"')
            data = (await found.bytes_async()).to_bytes()
            image, error = self.decode(data, etag, self.slots[slot])
        except FileNotFoundError:
            image, error = None, records.Missing("there is no such object")
        except Exception as e:
            # Whatever else there is, the worker decides what becomes of the job.
            image, error = None, RuntimeError(f"{type(e).__name__}: {e}")
        self.link.send(pickle.dumps((tag, image, error)))

    def store(self, bucket):
        if bucket not in self.stores:
            self.stores[bucket] = S3Store(
                bucket,
                endpoint=self.settings.storage_endpoint,
                region=self.settings.region,
                access_key_id=self.settings.access_key,
                secret_access_key=self.settings.secret_key,
                virtual_hosted_style_request=False,
                client_options={"allow_http": self.settings.storage_endpoint.startswith("http:")},
            )
        return self.stores[bucket]

    def decode(self, data, etag, pixels):
        sha256 = hashlib.sha256(data).digest()
        try:
            seen = self.preparer.prepare(data, pixels)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
            return records.Image(etag, sha256, len(data)), records.Undecodable(str(error))
        return records.Image(etag, sha256, len(data), *seen), None


def slots(file, size):
    """A file of shared memory as an array: `[slots, 3, height, width]` uint8."""
    width, height = size
    memory = mmap.mmap(file, 0)
    return np.ndarray((len(memory) // (3 * height * width), 3, height, width), np.uint8, memory)


def main():
    link, memory = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    orders = pickle.loads(link.recv(MESSAGE_BYTES))
    uvloop.run(Decoder(orders, link, memory).run())


if __name__ == "__main__":
    main()

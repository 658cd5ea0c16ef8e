#!/usr/bin/env python3
"""Draws the images in samples/: good ones in every format, damaged ones, and files that are no images.

    python models/make_samples.py [FOLDER]

Needs Pillow and nothing else. Every picture is drawn by the code below, so nobody else has a right in it. The same
Pillow always writes the same bytes; the committed files are by the version in tests/requirements.txt.
"""

import argparse
import io
import math
import random
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SAMPLES = Path(__file__).resolve().parent / "samples"
EXIF_ORIENTATION = 0x0112
# Drawn larger and then shrunk, edges come out smooth.
OVERSAMPLING = 2


# Pictures


def gradient(size, top, bottom):
    """A vertical one, from one colour to another."""
    mask = Image.linear_gradient("L").resize(size)
    return Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), mask)


def grainy(picture, seed, strength):
    """Adds what a sensor adds. `Image.effect_noise` would draw other noise in every run."""
    noise = Image.frombytes("L", picture.size, random.Random(seed).randbytes(picture.width * picture.height))
    noise = noise.point([round(128 + (value - 127.5) * strength / 128) for value in range(256)])
    return ImageChops.add(picture, Image.merge("RGB", [noise] * 3), scale=1, offset=-128)


def landscape(width, height, seed, sky=((86, 140, 205), (238, 214, 180)), grain=14):
    """Sky, a sun, three ranges of hills, each darker than the one behind it, and a house."""
    numbers = random.Random(seed)
    w, h = OVERSAMPLING * width, OVERSAMPLING * height
    picture = gradient((w, h), *sky)
    draw = ImageDraw.Draw(picture)
    draw.circle((w * 0.72, h * 0.26), h * 0.08, (255, 240, 190))
    for depth in range(3):
        base, waves = h * (0.5 + 0.14 * depth), [(numbers.uniform(2, 9), numbers.uniform(0, 6.3)) for _ in range(4)]
        ridge = [
            (x, base - h * 0.05 * sum(math.sin(f * x / w + p) / (i + 1) for i, (f, p) in enumerate(waves)))
            for x in range(0, w + 4, 4)
        ]
        shade = 1 - 0.27 * depth
        draw.polygon([*ridge, (w, h), (0, h)], tuple(round(c * shade) for c in (112, 146, 104)))
    left, top, side = w * 0.2, h * 0.62, h * 0.16
    draw.rectangle((left, top, left + side, top + side), (226, 206, 178))
    roof = [(left - side * 0.1, top), (left + side / 2, top - side * 0.55), (left + side * 1.1, top)]
    draw.polygon(roof, (150, 62, 48))
    draw.rectangle((left + side * 0.38, top + side * 0.5, left + side * 0.62, top + side), (88, 60, 44))
    return grainy(picture.resize((width, height), Image.Resampling.BOX), seed, grain)


def still_life(width, height, seed, grain=10):
    """Three balls on a table, lit from the upper left."""
    numbers = random.Random(seed)
    picture = gradient((width, height), (196, 186, 170), (150, 132, 112))
    ImageDraw.Draw(picture).rectangle((0, height * 0.62, width, height), (118, 78, 50))
    # Pillow's radial gradient is black in the middle.
    light = ImageChops.invert(Image.radial_gradient("L"))
    for index in range(3):
        radius = round(min(width, height) * numbers.uniform(0.13, 0.2))
        x, y = round(width * (0.22 + 0.28 * index)), round(height * 0.76) - radius
        shadow = Image.new("L", picture.size)
        ImageDraw.Draw(shadow).ellipse((x - radius, y + radius * 0.7, x + radius * 1.6, y + radius * 1.15), 120)
        picture.paste((30, 20, 14), mask=shadow.filter(ImageFilter.GaussianBlur(radius / 6)))
        hue = tuple(numbers.randrange(60, 240) for _ in range(3))
        ball = Image.new("RGB", (2 * radius, 2 * radius), tuple(c // 3 for c in hue))
        # Twice as wide as the ball, so that its brightest spot can lie beside the middle.
        start = round(radius * 1.4)
        box = (start, start, start + 2 * radius, start + 2 * radius)
        spot = light.resize((4 * radius, 4 * radius)).crop(box)
        ball.paste(tuple(min(255, c + 40) for c in hue), mask=spot)
        disc = Image.new("L", ball.size)
        ImageDraw.Draw(disc).circle((radius, radius), radius - 1, 255)
        picture.paste(ball, (x - radius, y - radius), disc)
    return grainy(picture, seed, grain)


def badge(side):
    """A ring and a star on nothing, with soft edges in the alpha channel."""
    large = OVERSAMPLING * side
    picture = Image.new("RGBA", (large, large), (20, 70, 130, 0))
    draw, middle = ImageDraw.Draw(picture), large / 2
    draw.circle((middle, middle), middle * 0.94, (20, 70, 130, 255))
    draw.circle((middle, middle), middle * 0.8, (236, 242, 248, 160))
    points = [
        (middle + math.sin(k * math.pi / 5) * r * middle, middle - math.cos(k * math.pi / 5) * r * middle)
        for k, r in enumerate([0.66, 0.28] * 5)
    ]
    draw.polygon(points, (206, 150, 30, 255))
    return picture.resize((side, side), Image.Resampling.BOX)


def chart(width, height):
    """Bars in flat colours, as a screenshot has them."""
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for line in range(5):
        y = height * (0.1 + 0.2 * line)
        draw.line((width * 0.08, y, width * 0.95, y), (214, 214, 214))
    colours = [(66, 120, 181), (224, 130, 54), (92, 158, 88), (190, 76, 80)]
    for index, share in enumerate([0.35, 0.62, 0.5, 0.78, 0.44, 0.7, 0.28, 0.56]):
        left = width * (0.11 + 0.105 * index)
        draw.rectangle((left, height * (0.9 - share), left + width * 0.07, height * 0.9), colours[index % 4])
    return picture


def clock(side, hour):
    """A face with one hand."""
    picture = Image.new("RGB", (side, side), (246, 244, 238))
    draw, middle = ImageDraw.Draw(picture), side / 2
    draw.circle((middle, middle), middle * 0.9, (255, 255, 255), (40, 40, 40), 3)
    for tick in range(12):
        x, y = math.sin(tick * math.pi / 6), -math.cos(tick * math.pi / 6)
        ends = [middle + middle * part * axis for part in (0.74, 0.84) for axis in (x, y)]
        draw.line(ends, (40, 40, 40), 3)
    angle = hour * math.pi / 6
    tip = (middle + math.sin(angle) * middle * 0.6, middle - math.cos(angle) * middle * 0.6)
    draw.line(((middle, middle), tip), (176, 40, 40), 5)
    return picture


# Files


def saved(picture, container, **options):
    """The picture's bytes in a format."""
    out = io.BytesIO()
    picture.save(out, container, **options)
    return out.getvalue()


def turned():
    """Stored lying on its side, with the EXIF tag that tells viewers to turn it (6: clockwise by 90 degrees)."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    upright = landscape(427, 640, 31)
    return saved(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=85, exif=exif)


def deep_grey():
    """Grey in 16 bits a sample, with noise in the lower byte."""
    grey = still_life(420, 300, 41, grain=4).convert("L")
    low = random.Random(41).randbytes(grey.width * grey.height)
    samples = b"".join(bytes(pair) for pair in zip(low, grey.tobytes(), strict=True))
    return saved(Image.frombytes("I;16", grey.size, samples), "PNG")


def announcing(width, height):
    """A PNG of a few bytes whose header, with the right checksum, announces a picture of this size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def samples():
    """Every file, by name."""
    hours = [clock(160, hour) for hour in range(12)]
    jpeg = saved(landscape(800, 533, 7), "JPEG", quality=85)
    png = saved(still_life(320, 240, 5), "PNG")
    return {
        "animated-12-frames.gif": saved(hours[0], "GIF", save_all=True, append_images=hours[1:], duration=250, loop=0),
        "alpha.png": saved(badge(256), "PNG"),
        "baseline.jpg": jpeg,
        "cmyk.jpg": saved(still_life(600, 400, 11).convert("CMYK"), "JPEG", quality=85),
        "exif-rotated.jpg": turned(),
        "grey-16-bit.png": deep_grey(),
        "large-12-megapixels.jpg": saved(landscape(4000, 3000, 23, grain=0), "JPEG", quality=60),
        "lossy.webp": saved(still_life(720, 480, 13), "WEBP", quality=80),
        "lzw.tiff": saved(chart(640, 400), "TIFF", compression="tiff_lzw"),
        "palette.png": saved(chart(480, 300).quantize(16), "PNG"),
        "progressive.jpg": saved(
            landscape(1024, 683, 17, sky=((40, 44, 92), (222, 120, 82))), "JPEG", quality=85, progressive=True
        ),
        "thumbnail-32x32.bmp": saved(landscape(32, 32, 3), "BMP"),
        "bad-cut-short.jpg": jpeg[: len(jpeg) // 2],
        "bad-cut-short.png": png[: len(png) // 3],
        "bad-empty.jpg": b"",
        "bad-huge-by-its-header.png": announcing(60_000, 60_000),
        "bad-text.jpg": b"This is a text file. Its name says otherwise.\n",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = "where to (default: samples/ beside this file)"
    parser.add_argument("folder", type=Path, nargs="?", default=SAMPLES, help=where)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    files = samples()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    print(f"{len(files)} files, {sum(map(len, files.values())):,} bytes")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How many pictures PDQ still finds after they were changed, and whether pages of text and screenshots are taken for others.

    pip install pdqhash==0.2.8 pillow    # pdqhash has no wheel: it needs a C++ compiler
    python tests/bench/recall.py FOLDER...

The hashes are those of `pdqhash`, which Pixwarden's are equal to: see `hashes.py`.
"""

import argparse
import io
import random
from pathlib import Path

import numpy as np
import pdqhash
from PIL import Image, ImageDraw, ImageFilter, ImageOps

LARGEST = 1024
LEAST_QUALITY, FLAG_QUALITY = 50, 70
"""From which quality on a likeness counts, and from which on it flags."""
NEAR, FAR = 15, 31
MADE = {"pictures of one colour": 400, "pages of text": 800, "screenshots": 800}
WORDS = "about all and are but call could did down each find for from had her into long look made not number other people".split()


def hashed(picture):
    bits, quality = pdqhash.compute(np.ascontiguousarray(np.asarray(picture.convert("RGB"))))
    return np.array(bits, dtype=bool), quality


def jpeg(picture, quality):
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue()))


def scaled(picture, factor):
    return picture.resize([max(8, int(side * factor)) for side in picture.size], Image.Resampling.LANCZOS)


def cut(picture, share):
    across, down = (int(side * share) for side in picture.size)
    return picture.crop((across, down, picture.width - across, picture.height - down))


def framed(picture, share):
    return ImageOps.expand(picture, int(max(picture.size) * share), "white")


CHANGES = {
    "JPEG of quality 90": lambda picture: jpeg(picture, 90),
    "JPEG of quality 50": lambda picture: jpeg(picture, 50),
    "JPEG of quality 20": lambda picture: jpeg(picture, 20),
    "half the size": lambda picture: scaled(picture, 1 / 2),
    "a quarter of the size": lambda picture: scaled(picture, 1 / 4),
    "brighter by a quarter": lambda picture: Image.eval(picture, lambda level: min(255, level * 5 // 4)),
    "grey": lambda picture: picture.convert("L"),
    "blurred by 2 pixels": lambda picture: picture.filter(ImageFilter.GaussianBlur(2)),
    "2 % cut off each side": lambda picture: cut(picture, 0.02),
    "5 % cut off each side": lambda picture: cut(picture, 0.05),
    "a white border of 2 %": lambda picture: framed(picture, 0.02),
    "a white border of 5 %": lambda picture: framed(picture, 0.05),
}


def made(kind, chance):
    """A picture of a kind that resembles many others."""
    colour = lambda: tuple(chance.randrange(256) for _ in range(3))
    words = lambda count: " ".join(chance.choices(WORDS, k=count))
    if kind == "pictures of one colour":
        return Image.new("RGB", (640, 480), colour())
    picture = Image.new("RGB", (600, 800), "white") if kind == "pages of text" else Image.new("RGB", (1024, 640), "gainsboro")
    draw = ImageDraw.Draw(picture)
    if kind == "pages of text":
        for line in range(chance.randrange(5, 45)):
            draw.text((30, 20 + 16 * line), words(chance.randrange(4, 14)), fill="black")
        return picture
    draw.rectangle((0, 0, 1024, 40), fill=colour())
    for _ in range(chance.randrange(3, 9)):
        x, y = chance.randrange(220, 800), chance.randrange(60, 520)
        draw.rectangle((x, y, x + chance.randrange(80, 220), y + chance.randrange(40, 110)), fill=colour())
    for line in range(20):
        draw.text((10, 50 + 28 * line), words(2), fill="black")
    return picture


def pictures(folders):
    for file in sorted(file for folder in folders for file in Path(folder).rglob("*") if file.is_file()):
        try:
            picture = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        except OSError:
            continue
        picture.thumbnail((LARGEST, LARGEST))
        yield picture


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    known = [(picture, *hashed(picture)) for picture in pictures(parser.parse_args().folders)]
    known = [(picture, bits) for picture, bits, quality in known if quality >= LEAST_QUALITY]
    print(f"{len(known)} pictures of a quality from {LEAST_QUALITY} on, at most {LARGEST} pixels")
    print(f"| changed | found to {NEAR} | found to {FAR} | median distance |\n|---|---|---|---|")
    for name, change in CHANGES.items():
        distances = np.array([(hashed(change(picture))[0] != bits).sum() for picture, bits in known])
        near, far = (f"{(distances <= limit).mean():.0%}" for limit in (NEAR, FAR))
        print(f"| {name} | {near} | {far} | {np.median(distances):.0f} |", flush=True)
    chance, bank = random.Random(1), np.array([bits for _, bits in known])
    for kind, count in MADE.items():
        hashes = [bits for bits, quality in (hashed(made(kind, chance)) for _ in range(count)) if quality >= FLAG_QUALITY]
        flagged = sum((bank != bits).sum(1).min() <= FAR for bits in hashes)
        alike = sum(int(((np.array(hashes[i + 1 :]) != bits).sum(1) <= FAR).sum()) for i, bits in enumerate(hashes[:-1]))
        print(f"{count} {kind}: {len(hashes)} may flag, {flagged} like a picture of the folders, {alike} pairs alike")


if __name__ == "__main__":
    main()

"""The figures of docs/guide/detectors.md about the detectors that models/get makes.

    python tests/bench/tried --pixwarden target/release/pixwarden --images DIR [--tfjs DIR] [--pictures 500] [--json FILE]

DIR has ordinary photographs, of which none should be flagged. Variants of them (other quality, size, colours) fill up to
--pictures. For each package in models/ it prints how far the scores of `pixwarden scan` are from three references:

- the same pixels through the original file (open-nsfw: ONNX Runtime; nsfwjs: TensorFlow.js, where --tfjs names a folder in
  which `npm install @tensorflow/tfjs@4.22.0 @tensorflow/tfjs-backend-wasm@4.22.0 nsfwjs@4.4.0` was run);
- Pillow and ONNX Runtime from the picture on, with the package's preprocessing;
- the original program's whole pipeline, whose resizing differs.

The last two leave out pictures with a colour profile, which only Pixwarden reads.

Then the share of photographs (not of variants) that reach a threshold, and the time on one core.
Needs tests/requirements.txt.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "models"))

from common.graph import open_session, probabilities
from common.pixels import as_seen
from recipes.reference import model_input, pixels

THRESHOLDS = (0.2, 0.5, 0.7, 0.8, 0.9, 0.95)
TIMED_RUNS = 40


def jpeg(quality: int, image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


VARIANTS = {
    "q30.jpg": lambda image: jpeg(30, image),
    "q75.jpg": lambda image: jpeg(75, image),
    "half.png": lambda image: png(image.resize((max(image.width // 2, 1), max(image.height // 2, 1)), Image.Resampling.BOX)),
    "mirror.png": lambda image: png(ImageOps.mirror(image)),
    "grey.png": lambda image: png(image.convert("L")),
    "warm.png": lambda image: png(Image.merge("RGB", [band.point(lambda v, f=f: min(255, int(v * f))) for band, f in zip(image.split(), (1.15, 1.0, 0.85), strict=True)])),
    "middle.png": lambda image: png(image.crop((image.width // 4, image.height // 4, image.width * 3 // 4, image.height * 3 // 4))),
    "tall.png": lambda image: png(image.resize((image.width // 2, image.height))),
    "thumb.jpg": lambda image: jpeg(85, ImageOps.contain(image, (128, 128))),
    "bright.jpg": lambda image: jpeg(90, image.point(lambda v: min(255, v * 5 // 4))),
}


def pictures(folder: Path, count: int, into: Path) -> tuple[list[Path], list[Path]]:
    """Photographs and their variants."""
    photographs = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    variants = []
    for name, make in VARIANTS.items():
        for path in photographs:
            if len(photographs) + len(variants) >= count:
                return photographs, variants
            with Image.open(path) as image:
                upright = as_seen(image)
            # A variant shows the numbers of its pixels, without the profile that came with them.
            upright.info.clear()
            data = make(upright)
            variants.append(into / f"{path.stem}.{name}")
            variants[-1].write_bytes(data)
    return photographs, variants


def scan(binary: Path, package: Path, files: list[Path], saved: Path) -> list[dict]:
    command = [str(binary), "scan", "--log", "off", "--config", str(package / "pixwarden.toml"), "--format", "jsonl", "--save-pixels", str(saved), "-"]
    done = subprocess.run(command, input="\n".join(map(str, files)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"scan ended with {done.returncode}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


class Package:
    """A package and its reference."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.config, self.preprocessor = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "preprocessor_config"))
        self.labels = [self.config["id2label"][str(index)] for index in range(len(self.config["id2label"]))]
        self.session = open_session(folder / "model.onnx", threads=1)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """`[n, height, width, 3]` uint8 to probabilities, one picture a run."""
        rows = []
        for image in batch:
            values = model_input(image[None], self.config, self.preprocessor, self.session)
            rows.append(self.session.run(None, {self.session.get_inputs()[0].name: values})[0][0])
        return probabilities(np.array(rows)) if self.config["pixwarden"]["output"] == "logits" else np.array(rows)

    def milliseconds(self, image: np.ndarray) -> float:
        self.run(image[None])
        times = []
        for _ in range(TIMED_RUNS):
            began = time.perf_counter()
            self.run(image[None])
            times.append(time.perf_counter() - began)
        # Other work of the machine only makes a run longer.
        return 1000 * min(times)


def original_open_nsfw(package: Package, images: list[Image.Image]) -> np.ndarray:
    """Its own steps: bilinear to 256x256, a JPEG of Pillow's default quality, the middle."""
    size = package.preprocessor["size"]
    found = []
    for image in images:
        resized = as_seen(image).resize((size["width"], size["height"]), Image.Resampling.BILINEAR)
        out = io.BytesIO()
        resized.save(out, "JPEG")
        found.append(np.asarray(Image.open(out).convert("RGB"))[16:240, 16:240])
    return package.run(np.array(found))


def tfjs(folder: Path, images: list[np.ndarray], scratch: Path) -> np.ndarray:
    files = []
    for index, image in enumerate(images):
        path = scratch / f"{index}.rgb"
        path.write_bytes(np.ascontiguousarray(image).tobytes())
        files.append({"path": str(path), "width": image.shape[1], "height": image.shape[0]})
    model = folder / "node_modules/nsfwjs/dist/models/mobilenet_v2"
    command = ["node", str(HERE / "original.cjs"), str(folder), str(model)]
    done = subprocess.run(command, input=json.dumps({"files": files}), capture_output=True, text=True, check=True)
    return np.array(json.loads(done.stdout))


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> dict:
    gap = np.abs(ours - theirs).max(axis=1)
    facts = {"largest": float(gap.max()), "mean": float(gap.mean()), "over_0.05": int((gap > 0.05).sum()), "pictures": len(gap)}
    print(f"  {name}: largest {facts['largest']:.2g}, mean {facts['mean']:.2g}, over 0.05: {facts['over_0.05']} of {len(gap)}")
    return facts


def measure(package: Package, options: argparse.Namespace, photographs: list[Path], variants: list[Path], scratch: Path) -> dict:
    files = photographs + variants
    saved = scratch / package.name
    rows = scan(options.pixwarden, package.folder, files, saved)
    scored = np.array([[row["scores"][package.name][label] for label in package.labels] for row in rows])
    fed = np.array([np.asarray(Image.open(saved / package.name / f"{row['sha256']}.png").convert("RGB")) for row in rows])
    images = [Image.open(path) for path in files]
    # Pixwarden converts colours by their profile, and the original programs do not.
    plain = np.array(["icc_profile" not in image.info for image in images])
    images = [image for image, is_plain in zip(images, plain, strict=True) if is_plain]
    print(f"{package.name}: {len(photographs)} photographs, {len(variants)} variants")
    facts: dict = {"photographs": len(photographs), "variants": len(variants)}
    if package.name == "open-nsfw":
        facts["same_pixels"] = difference("the same pixels, the original file in ONNX Runtime", scored, package.run(fed))
        facts["original"] = difference("the original program", scored[plain], original_open_nsfw(package, images))
    elif options.tfjs:
        facts["same_pixels"] = difference("the same pixels, TensorFlow.js", scored, tfjs(options.tfjs, list(fed), scratch))
        facts["original"] = difference("the original program", scored[plain], tfjs(options.tfjs, [np.asarray(as_seen(image)) for image in images], scratch))
    ours = np.array([pixels(image, package.preprocessor) for image in images])
    facts["reference"] = difference("Pillow and ONNX Runtime", scored[plain], package.run(ours))
    facts["shares"] = {}
    print("  photographs at or over     " + "".join(f"{t:>8}" for t in THRESHOLDS))
    for index, label in enumerate(package.labels):
        reached = [int((scored[: len(photographs), index] >= threshold).sum()) for threshold in THRESHOLDS]
        facts["shares"][label] = dict(zip(map(str, THRESHOLDS), reached, strict=True))
        print(f"  {label:26}" + "".join(f"{count:>8}" for count in reached))
    facts["outcomes"] = {o: sum(row["outcome"] == o for row in rows[: len(photographs)]) for o in ("passed", "review", "flagged")}
    print(f"  outcomes under the suggested rules: {facts['outcomes']}")
    facts["ms"] = round(package.milliseconds(fed[0]), 1)
    print(f"  one picture on one core: {facts['ms']} ms")
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixwarden", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--packages", type=Path, nargs="+", default=[ROOT / "models/open-nsfw", ROOT / "models/nsfwjs"], metavar="DIR")
    parser.add_argument("--tfjs", type=Path, metavar="DIR")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        photographs, variants = pictures(options.images, options.pictures, Path(scratch))
        facts = {folder.name: measure(Package(folder), options, photographs, variants, Path(scratch)) for folder in options.packages}
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()

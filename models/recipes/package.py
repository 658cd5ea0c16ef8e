"""From a recipe to a package folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from common.errors import PackagingError
from common.folder import in_place_of, refuse_taken, sha256, write_checksums, write_json
from recipes import fetch
from recipes.card import card, rules_file
from recipes.recipe import Recipe

GOLDEN = Path(__file__).with_name("golden")


def make(recipe: Recipe, target: Path) -> None:
    """Downloads, verifies, converts and writes the package. Nothing is left where a step fails."""
    refuse_taken(target)
    with tempfile.TemporaryDirectory(prefix="recipe-") as scratch:
        downloads, unpacked = Path(scratch, "archive"), Path(scratch, "unpacked")
        downloads.mkdir()
        unpacked.mkdir()
        print(f"downloading {recipe.source}", flush=True)
        fetch.unpack(fetch.archive(recipe.source, downloads), unpacked)
        with in_place_of(target) as folder:
            write(recipe, unpacked, folder)


def write(recipe: Recipe, unpacked: Path, folder: Path) -> None:
    """Writes a package's files."""
    recipe.build(unpacked, folder)
    found = sha256(folder / "model.onnx")
    if found != recipe.model_sha256:
        raise PackagingError(
            f"the model has the SHA-256 {found}, but the recipe's figures are of {recipe.model_sha256}: another release of the "
            "libraries that convert it writes another file; models/requirements-recipes.txt has the pinned ones"
        )
    labels = {str(index): label for index, label in enumerate(recipe.labels)}
    write_json(folder / "config.json", {**recipe.config, "id2label": labels})
    write_json(folder / "preprocessor_config.json", recipe.preprocessor)
    shutil.copyfile(GOLDEN / f"{recipe.name}.png", folder / "golden.png")
    write_json(folder / "golden.json", {"image": "golden.png", "scores": recipe.golden})
    for name, path in recipe.licences.items():
        shutil.copyfile(unpacked / path, folder / name)
    (folder / "README.md").write_text(card(recipe))
    (folder / "pixwarden.toml").write_text(rules_file(recipe))
    write_checksums(folder)

"""The model card, written from measurements so that it cannot state a figure nobody measured."""

from __future__ import annotations


UNKNOWN = {
    "task": "distinguishes real from generated thumbnails",
    "purpose": "The publisher should say here what it is for.",
    "limits": "Pictures unlike its training images, and full-size photographs shrunk to 32x32, may be misjudged at any rate.",
    "data": "The origin of the training images was not given. The publisher of this package should name it here, with their licence.",
}
"""What a card says when the recipe is run on images it knows nothing of."""


def card(facts: dict, name: str, about: dict[str, str]) -> str:
    """Markdown for the package `name`; `facts` is the content of its measurements.json, `about` what no run can measure:
    `task`, `purpose`, `limits` and `data`, as in `UNKNOWN` and training/cifake.toml."""
    plain, training = facts["unchanged"], facts["training"]
    (real_right, real_wrong), (generated_wrong, generated_right) = plain["confusion"]
    mixing = training["augmentation"]
    return f"""# {name}

A residual network of {facts["parameters"]:,} parameters that {about["task"]}. {about["purpose"]}

**It must not be used for real decisions.** {about["limits"]} A real screening service needs a real detector. Even
then a score is an indication and never proof, and very vivid or very polished real pictures can be misjudged.

## Input and output

| | |
|---|---|
| input | `pixels`, uint8, `[batch, 32, 32, 3]`: the whole image, both edges resized to 32 by Pillow's bicubic filter ("squash"), RGB, transparency over white |
| inside the graph | transposition to NCHW and normalisation with the `mean` and `std` of `config.json` |
| output | `logits`, float32, `[batch, 2]`; softmax gives "by human" (index 0) and "by AI" (index 1) |
| size | {facts["size_bytes"]:,} bytes, no external data |
| sha256 of `model.onnx` | `{facts["sha256"]}` |
| agreement with PyTorch | logits differ by at most {facts["onnx_torch_logit_difference"]:.1e} on {facts["onnx_torch_images"]:,} validation images and 64 of noise |
| time | {facts["one_core_ms_per_image"]["1"]:.2f} ms per image at batch 1, {facts["one_core_ms_per_image"]["32"]:.2f} ms at batch 32 (median; ONNX Runtime, one thread, {facts["processor"]}; without decoding) |

The training script drew `golden.png`. `golden.json` holds its scores, computed with Pillow and ONNX Runtime on the CPU.

## Data

{about["data"]} {training["images"]:,} images were used for training and {facts["images"]:,} for validation. The packaged epoch was chosen on the
validation images, so the figures below are slightly optimistic.

## Measured on the {facts["images"]:,} validation images

Accuracy {plain["accuracy"]:.4f}, ROC AUC {plain["roc_auc"]:.4f}.

| | said "by human" | said "by AI" |
|---|---|---|
| real | {real_right:,} | {real_wrong:,} |
| generated | {generated_wrong:,} | {generated_right:,} |

{threshold_table(facts["thresholds"])}

Changes to a picture change its score. For each row, every validation image was changed before it was screened. The
images themselves were already JPEG files, and the network was not trained on such changes. JPEG is Pillow's with
4:2:0 subsampling, resizing is bicubic.

{change_table(plain, facts["changed"])}

## Training

Trained by `models/train.py` on {training["device"]} in {training["minutes"]:.0f} minutes, in {training["precision"]}; measured and exported in float32.
{training["epochs_run"]} epochs of at most {training["epochs"]}, early stopping after {training["patience"]} without gain, epoch {training["best_epoch"]} packaged. SGD with Nesterov momentum
0.9, one-cycle learning rate up to {training["learning_rate"]}, weight decay {training["weight_decay"]}, averaged weights (decay {training["average_decay"]}), seed {training["seed"]}.
Batch size {training["batch_size"]}. Mirroring; rotation by up to {mixing["rotate_degrees"]:g} degrees on {mixing["rotate_probability"]:.0%} of the images; random crop after padding by {mixing["crop_padding"]};
Mixup on {mixing["mixup_probability"]:.0%} and CutMix on {mixing["cutmix_probability"]:.0%} of the batches. `training.jsonl` is the log, and `measurements.json`
has every figure of this card.

![Loss and accuracy by epoch](curves.png)
"""


def threshold_table(thresholds: dict) -> str:
    rows = ["| score of \"by AI\" at least | real images reaching it | generated images reaching it |", "|---|---|---|"]
    for threshold, shares in thresholds.items():
        rows.append(f"| {threshold} | {shares['real_reaching']:.2%} | {shares['generated_reaching']:.2%} |")
    return "\n".join(rows)


def change_table(plain: dict, changed: dict) -> str:
    rows = ["| change | accuracy | ROC AUC | real called AI | generated called human |", "|---|---|---|---|---|"]
    for name, figures in {"none": plain, **changed}.items():
        real, generated = figures["confusion"]
        rows.append(
            f"| {name} | {figures['accuracy']:.4f} | {figures['roc_auc']:.4f} "
            f"| {real[1] / sum(real):.2%} | {generated[0] / sum(generated):.2%} |"
        )
    return "\n".join(rows)

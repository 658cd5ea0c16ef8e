"""The reference that Pixwarden is measured against, and the material to measure it with.

- `scenes`: pictures as arrays, made by code.
- `containers`: files that Pillow cannot write: interlaced and 16-bit PNG, GIF with chosen disposal, BMP with alpha.
- `images`: the fixture images, one class per file format and variant.
- `damage`: files that must never be screened as images.
- `detectors`: small ONNX packages whose scores spread over the fixtures.
- `processors`: a package for each kind of image processor and transform.
- `integrity`: whether a file is whole, where Pillow does not look.
- `screen`: bytes to pixels to scores with Pillow and ONNX Runtime, and what the scores mean.
- `preprocessing`: what a package's configuration makes of an image, by the rules of timm and transformers.
- `libraries`: whether those rules are right, against the libraries themselves where they are installed.
- `expected`: what must come out for every file.

`python -m reference make DIR` writes all of it with the expected results.
"""

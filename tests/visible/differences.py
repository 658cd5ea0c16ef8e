"""Made files that are not screened as Chromium shows them, each with its argument. docs/visible.md lists them, too."""

ARGUED: dict[str, str] = {
    "avif/animated-full-range.avif": "Chromium takes the samples of an animation for 16 to 235 although the file says 0 to "
    "255, so that contrast grows a little. Pictures in other programs, and stills in Chromium, are as we screen them.",
}

"""Links between documents: each relative link names a file that exists, and a heading in it where it names one."""

import re
import urllib.parse

from common import ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def findings():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]:
        name = document.relative_to(ROOT)
        for target in LINK.findall(FENCE.sub("", document.read_text())):
            url = urllib.parse.urlsplit(target)
            if url.scheme or url.netloc:
                continue
            path = (document.parent / urllib.parse.unquote(url.path)) if url.path else document
            if not path.exists():
                yield f"{name}: the link {target} leads to no file"
            elif url.fragment and path.suffix == ".md" and url.fragment not in anchors(path.read_text()):
                yield f"{name}: the link {target} leads to no heading"


def anchors(text):
    """The anchors that GitHub makes of headings: lower case, hyphens for spaces, no punctuation."""
    found = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found

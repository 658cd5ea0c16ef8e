"""The ratios of a comparison as one picture: a line for each with a target, its interval, and the target."""

import math
from html import escape

import tables

WIDTH, LABEL, ROW, TOP = 980, 430, 22, 64
DECADES = (0.1, 10)
INK, GOOD, BAD, FAINT = "#222", "#2a7f3f", "#b3261e", "#ccc"

def place(value):
    """Where a ratio is, on a logarithmic axis: a half is as far from one as the double."""
    low, high = (math.log10(edge) for edge in DECADES)
    at = (math.log10(min(max(value, DECADES[0]), DECADES[1])) - low) / (high - low)
    return LABEL + at * (WIDTH - LABEL - 30)


def ratios(parts):
    """An SVG of all ratios that something is wanted of."""
    rows = [ratio for part in parts for ratio in part["ratios"] if tables.target(ratio)]
    height = TOP + ROW * len(rows) + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="22" font-size="15" fill="{INK}">What was measured against what, as ratios</text>',
        f'<text x="10" y="42" fill="{INK}">Dot: median. Line: 95 % of the medians. Bar: what is wanted, and to which side.</text>',
    ]
    for edge in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        x = place(edge)
        out.append(f'<line x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{height - 20}" stroke="{FAINT}"/>')
        out.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle" fill="{INK}">{edge:g}</text>')
    for number, ratio in enumerate(rows):
        y = TOP + ROW * number + ROW / 2
        sign, target = tables.target(ratio)
        colour = GOOD if tables.is_met(ratio) else BAD
        side = 5 if sign == "≥" else -5
        x = place(target)
        out.append(f'<text x="{LABEL - 12}" y="{y + 4}" text-anchor="end" fill="{INK}">{escape(ratio["name"])}</text>')
        out.append(f'<path d="M{x + side:.1f} {y - 7} H{x:.1f} V{y + 7} H{x + side:.1f}" fill="none" stroke="{INK}"/>')
        low, high = place(ratio["low"]), place(ratio["high"])
        out.append(f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<circle cx="{place(ratio["median"]):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
    return "\n".join([*out, "</svg>", ""])

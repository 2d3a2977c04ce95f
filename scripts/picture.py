#!/usr/bin/env python3
"""Draws a screen of text as an SVG of a terminal. usage: picture.py TITLE <SCREEN >SVG"""

import sys
from xml.sax.saxutils import escape

COLUMN, LINE, FONT, PAD, BAR = 8.4, 17, 14, 14, 30


def main():
    lines = [line.rstrip("\n") for line in sys.stdin]
    while lines and not lines[-1].strip():
        lines.pop()
    width = round(max(map(len, lines)) * COLUMN + 2 * PAD)
    height = len(lines) * LINE + 2 * PAD + BAR
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">')
    print(f'<rect width="{width}" height="{height}" rx="8" fill="#1c1e26"/>')
    for x, colour in ((18, "#e95678"), (38, "#fab795"), (58, "#29d398")):
        print(f'<circle cx="{x}" cy="15" r="6" fill="{colour}"/>')
    print(
        f'<text x="{width / 2}" y="20" fill="#9da0a8" font-family="sans-serif" font-size="13" '
        f'text-anchor="middle">{escape(sys.argv[1])}</text>'
    )
    print(f'<g fill="#d5d8da" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{FONT}" xml:space="preserve">')
    for number, line in enumerate(lines):
        y = BAR + PAD + number * LINE + FONT - 2
        # The length is given, so that a font of another width does not break the frames.
        print(f'<text x="{PAD}" y="{y}" textLength="{len(line) * COLUMN:.1f}">{escape(line)}</text>')
    print("</g>\n</svg>")


main()

"""What a reader gets to see: the parts of a piece of HTML, and how well colours stand out."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
from matplotlib.colors import to_rgb


class Page(HTMLParser):
    """What a reader of the page gets: tables by caption, text, tags and attributes."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.tables = [], [], [], {}
        self.stack, self.row, self.caption = [], None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in ("meta", "img"):
            self.stack.append(tag)
        if tag == "tr":
            self.row = []
            self.tables.setdefault(self.caption, []).append(self.row)
        elif tag in ("td", "th"):
            self.row.append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, "tags are nested"

    def handle_data(self, data):
        if not self.stack or self.stack[-1] == "style" or not data.strip():
            return
        if self.stack[-1] == "caption":
            self.caption = data
            self.tables[data] = []
        elif self.stack[-1] in ("td", "th"):
            self.row[-1] += data
        else:
            self.texts.append(data)


def linear(color):
    """Linear RGB of a colour of the screen (IEC 61966-2-1)."""
    c = np.array(to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """Of two colours, from 1 to 21 (WCAG 2.2)."""
    pair = [float(linear(color) @ [0.2126, 0.7152, 0.0722]) + 0.05 for color in (one, other)]
    return max(pair) / min(pair)

"""What tests of pages share: a reader of HTML that knows text, tags, addresses, and whether every tag is closed."""

from html.parser import HTMLParser

import pytest


class Page(HTMLParser):
    """Text outside the charts, tags, addresses, and whether every tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.open, self.words = set(), [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "svg" not in self.open and "style" not in self.open:
            self.words.append(data)


@pytest.fixture
def read():
    """The class of pages; call it with HTML."""
    return Page

"""A display that ends a training in its middle."""

from modicum.core.progress import Quiet


class Killed(Quiet):
    """Dies when more than so many updates are done; ``left`` are those that it would still have lived through."""

    def __init__(self, updates):
        self.left = updates

    def step(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

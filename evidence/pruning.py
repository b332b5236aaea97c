"""What rows on pruning share: options of ``fit`` on a decoder of a million weights, judged on windows of the demo's text."""

from __future__ import annotations

import functools
import json

from common import Claim, fitted, run
from scenes.decoder import decoder

# One table at both ends, which stays as it is.
EMBEDDING = ("model.embed_tokens",)
DATA = "a Llama of a million weights, trained on sources of Python's library, and windows of the shipped text"


def main(claim: Claim, gradients: int = 16) -> None:
    """Run a claim and print its result as JSON; gradients are taken on so many sequences."""
    fit = functools.partial(fitted, model=str(decoder().folder), gradient_samples=gradients, keep=EMBEDDING)
    print(json.dumps(run(claim, fit, data=DATA)))

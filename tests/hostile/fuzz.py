"""Coverage-guided search for files that a reader fails on: python fuzz.py READER SECONDS.

A case is either one file's bytes as they come, or choices by which a valid folder is spoilt. Ends with libFuzzer's count of runs; exits with
another code than 0, and prints the traceback, where anything but the project's own errors comes out.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["modicum.core", "modicum.data", "modicum.forms", "modicum.models", "modicum.export", "modicum.receipt"]
):
    import readers


def main(name: str, seconds: str) -> None:
    """Fuzz one reader."""
    with tempfile.TemporaryDirectory() as above:
        folder = readers.Spoilt(readers.READERS[name], Path(above) / "folder")

        def one(data: bytes) -> None:
            given = atheris.FuzzedDataProvider(data)
            if given.ConsumeIntInRange(0, 3):
                folder.read(lambda below: given.ConsumeIntInRange(0, below - 1))
            else:
                file = folder.names[given.ConsumeIntInRange(0, len(folder.names) - 1)]
                folder.read_with({file: given.ConsumeBytes(given.remaining_bytes())})

        corpus = Path(above) / "corpus"
        corpus.mkdir()
        for number, raw in enumerate(folder.whole.values()):
            (corpus / str(number)).write_bytes(raw[:4000] + b"\0")
        limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=4096", "-max_len=5000"]
        atheris.Setup([sys.argv[0], *limits, "-seed=1", "-verbosity=0", "-print_final_stats=1", str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])

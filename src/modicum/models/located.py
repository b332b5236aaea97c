"""Where a model's files are: in the package, in a directory, or on the hub."""

from __future__ import annotations

from pathlib import Path

from modicum.core.errors import ModelError, quoted

DEMO = Path(__file__).resolve().parents[1] / "demo" / "model"


def here(source: str | Path) -> Path | None:
    """Directory of a model's files on this machine; nothing where only the hub can have it. Raises ``ModelError`` for a name of neither."""
    if str(source) == "demo":
        return DEMO
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise ModelError(f"{source}: must be a directory with config.json and safetensors, is a file.")
    text = str(source)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise ModelError(f"{source}: no such directory. Give 'demo', a directory, or a Hugging Face id such as owner/name.")
    return None


def locate(source: str | Path) -> Path:
    """Directory of a model's files; a Hugging Face id is fetched. Raises ``ModelError``."""
    if (directory := here(source)) is not None:
        return directory
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*", "*.md"]
    try:
        return Path(snapshot_download(str(source), allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(f"{source}: is no local directory and could not be fetched from the hub ({quoted(error)}).") from None

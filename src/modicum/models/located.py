"""Where a model's files are: in the package, in a directory, or on the hub."""

from __future__ import annotations

from pathlib import Path

from modicum.core.errors import ModelError, listed, quoted

# What an import leaves beside the weights it made: which file they come from.
IMPORTED = "imported.json"
DEMO = Path(__file__).resolve().parents[1] / "demo" / "model"


def is_gguf(source: object) -> bool:
    """Whether this names a file for llama.cpp."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() == ".gguf" and Path(source).is_file()


def here(source: str | Path) -> Path | None:
    """Directory of a model's files on this machine; nothing where only the hub can have it. Raises ``ModelError`` for a name of neither."""
    if str(source) == "demo":
        return DEMO
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise ModelError(
            f"{source}: must be a directory with config.json and safetensors, is a file. {instead(Path(source).parent, Path(source))}"
        )
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


def instead(directory: Path, file: Path | None = None) -> str:
    """What to give in the place of a folder without a config, or of a file, as far as can be told from what is there."""
    if (file is None and any(directory.glob("*.gguf"))) or (file is not None and file.suffix.lower() == ".gguf"):
        return "GGUF files are compressed already: give the original checkpoint in safetensors, or fit and eval the file itself."
    if file is not None:
        return "Give the directory it lies in."
    if (directory / "adapter_config.json").is_file():
        return "It holds an adapter: merge it into its base model (merge_and_unload), save that, and give its directory."
    if (directory / "model_index.json").is_file():
        return "It holds a pipeline of several models: give the directory of one of them, such as unet or transformer."
    inside = sorted(path.parent.name for path in directory.glob("*/config.json"))
    return f"Give the directory that does: {listed(inside)}." if inside else "Give a directory saved by save_pretrained."

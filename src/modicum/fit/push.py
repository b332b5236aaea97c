"""A result sent to the Hugging Face Hub, as it stands: weights, config, companions, card, receipt."""

from __future__ import annotations

from pathlib import Path

from modicum.core.errors import SettingError, quoted
from modicum.fit.receipts import FILE, read_receipt


def push(directory: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload what ``fit`` wrote in ``directory`` to the repository ``repo`` (``user/name``), made where it is not there; its address.

    All files go as they are. ``receipt.json`` and ``run.yaml`` name models and data as they were given to ``fit``, local paths included. *Raises:*
    ``SettingError`` for a folder without a receipt, a name that the Hub does not take, and whatever the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    place = Path(directory)
    if not (place / FILE).is_file():
        raise SettingError(f"{place}: must be a folder that fit wrote, with its {FILE}, has none. Name another.")
    receipt = read_receipt(place / FILE)
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise SettingError("push: the repository must be named as user/name, of letters, digits and -_. alone. Name another.")
    api = HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        said = f"{receipt['model']['name']} in {receipt['bytes']['actual']} bytes, by modicum {receipt['versions']['modicum']}"
        api.upload_folder(repo_id=made.repo_id, folder_path=place, commit_message=said)
    except Exception as error:  # whatever the Hub's client raises: no token, no network, no right
        raise SettingError(
            f"push: the Hub must take {repo}, does not ({quoted(error)}). Log in with hf auth login, or see its word."
        ) from error
    return str(made)

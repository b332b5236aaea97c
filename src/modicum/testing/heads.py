"""Classes of Transformers beside causal language models: one or two heads of every architecture, by Transformers' own tables."""

from __future__ import annotations

import itertools

from transformers.models.auto import modeling_auto

from modicum.testing.tiny import causal_names

# Tables of heads that every architecture has in its own way, in the order in which they are swept; all of each are.
_EACH = (
    "MASKED_LM", "IMAGE_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "OBJECT_DETECTION", "DEPTH_ESTIMATION", "AUDIO_CLASSIFICATION", "CTC",
    "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "INSTANCE_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "MASK_GENERATION", "VIDEO_CLASSIFICATION",
    "AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR", "ZERO_SHOT_IMAGE_CLASSIFICATION", "ZERO_SHOT_OBJECT_DETECTION", "MASKED_IMAGE_MODELING",
    "TIME_SERIES_CLASSIFICATION", "TIME_SERIES_REGRESSION", "TIME_SERIES_PREDICTION", "TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM",
    "DOCUMENT_QUESTION_ANSWERING", "TABLE_QUESTION_ANSWERING", "VISUAL_QUESTION_ANSWERING", "KEYPOINT_DETECTION", "KEYPOINT_MATCHING",
    "IMAGE_TO_IMAGE", "IMAGE_MATTING", "NORMAL_ESTIMATION", "POSE_ESTIMATION", "POINTMAP_ESTIMATION", "TEXT_RECOGNITION", "TABLE_RECOGNITION",
    "CAUSAL_IMAGE_MODELING", "RETRIEVAL", "RNNT", "TDT", "DECISION",
)  # fmt: skip
# Tables of heads that are one linear layer on any encoder or decoder: a few of each, and those of architectures with no other head.
_REPEATED = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MULTIPLE_CHOICE", "NEXT_SENTENCE_PREDICTION")
_FEW = 6
# Both at once: pictures with texts, whose decoders are causal language models.
_LAST = ("IMAGE_TEXT_TO_TEXT",)


def other_names() -> list[str]:
    """Names of classes, each once: the first of every kind, then the second, and so on."""
    known = set(causal_names())
    told = {model for kind in _EACH for model in _table(kind)} | set(_table("CAUSAL_LM"))
    kinds = [list(_table(kind).values()) for kind in (*_EACH, *_LAST)]
    for kind in _REPEATED:
        listed = _table(kind)
        kinds.append([*list(listed.values())[:_FEW], *(name for model, name in listed.items() if model not in told)])
    told |= {model for kind in (*_REPEATED, *_LAST) for model in _table(kind)}
    # A model inside another, as its text or its vision, is what the other has of it.
    kinds.append([name for model, name in _table("").items() if model not in told and not _inner(model)])
    found = [name for names in itertools.zip_longest(*kinds) for name in names if name is not None]
    return [name for name in dict.fromkeys(found) if name not in known]


def _table(kind: str) -> dict[str, str]:
    """Model types with the class of this kind, the first where there are several."""
    found = getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES" if kind else "MODEL_MAPPING_NAMES", {})
    return {model: name if isinstance(name, str) else name[0] for model, name in sorted(found.items())}


def _inner(model: str) -> bool:
    return model.endswith(("_text", "_text_model", "_vision", "_vision_model", "_encoder", "_decoder", "_audio", "_model"))

"""A tiny random model that facts are taught to."""

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from modicum.edit.opening import taught
from modicum.models.located import DEMO
from modicum.testing.facts import invented


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture
def pupil(tokenizer):
    """A Llama of 4 blocks, 32 wide."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, vocab_size=1024,
        max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).eval()
    return taught(module, tokenizer, torch.randint(3, 1024, (8, 32)))


@pytest.fixture(scope="session")
def facts():
    return invented(6)

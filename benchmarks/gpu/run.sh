#!/usr/bin/env bash
# Everything that wants a GPU, in one go: the CUDA tests, the speed benchmarks at 7B shape, and further training of the
# bundled checkpoint. Needs torch, transformers and the package's other light dependencies; neither ray nor deepspeed.
#
#     OUT=/tmp/gpu STEPS=6000 benchmarks/gpu/run.sh
#
# OUT gets tests.log, the result files, the run's metrics, and the trained weights in shards of at most 14 MB.
# TRAIN_SECONDS stops the training early, with what was learned by then in OUT too. Not run yet: no GPU was at hand.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:?where results go}
STEPS=${STEPS:-6000}
mkdir -p "$OUT"

python -m pytest tests/ferret_core -k cuda | tee "$OUT/tests.log"

python benchmarks/region_sampler.py --device cuda
cp benchmarks/results/*_cuda.json "$OUT"

# Weights leave every minute, so that a machine taken away takes little with it.
run=runs/gpu
export_weights() {
    python benchmarks/gpu/export.py "$run" "$OUT/model" && cp "$run/metrics.jsonl" "$OUT" || true
}
while sleep 60; do export_weights; done &
exporter=$!
trap 'kill $exporter 2>/dev/null' EXIT
timeout --signal=TERM "${TRAIN_SECONDS:-0}" python -m ferret_core.cli train \
    --config ferret_core/training/configs/playground.yaml init=ferret_core/checkpoint/bundled/playground output="$run" \
    device=cuda workers=12 batch_size=64 first_scene=10000000 save_minutes=0.9 steps="$STEPS" decay_steps="$((STEPS / 3))" || true
kill $exporter
export_weights
python -m ferret_core.cli eval playground --model "$OUT/model" --scenes 1000 --batch-size 256 --output "$OUT"

#!/usr/bin/env bash
# Everything that wants a GPU, in one go: the CUDA tests, the speed benchmarks at 7B shape, and further training of the
# bundled checkpoint. Needs torch, transformers, pytest, hypothesis and the package's other light dependencies; neither ray nor
# deepspeed. Settings of the training may follow as KEY=VALUE.
#
#     OUT=/tmp/gpu STEPS=6000 benchmarks/gpu/run.sh
#     cat /tmp/gpu/results.tgz.* | tar xz
#
# OUT gets one archive in parts of at most 14 MB: tests.log, the result files, the run's metrics, the trained model and how it
# did. It is written after each stage and every minute of the training: a machine that is taken away takes little with it.
# TRAIN_SECONDS stops the training early; the same command goes on from there. RUN is where it lives. Not run on a GPU yet;
# tried out with DEVICE=cpu on a tiny run.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:?where results go}
DEVICE=${DEVICE:-cuda}
STEPS=${STEPS:-6000}
RUN=${RUN:-runs/gpu}
results=$RUN/results
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT" "$results"

send() {
    rm -rf "$RUN"/parts && mkdir "$RUN"/parts
    tar -cz -C "$results" . | split -b 14000000 - "$RUN/parts/results.tgz."
    rm -f "$OUT"/results.tgz.* && mv "$RUN"/parts/* "$OUT"
}

python -m pytest tests/ferret_core/test_cuda.py tests/ferret_core/test_triton.py -rs -s | tee "$results/tests.log" || tests_failed=1
send

if [ "$DEVICE" = cuda ]; then    # a CPU would take hours
    python benchmarks/region_sampler.py --device cuda
    python benchmarks/engine.py --device cuda --shape 7b --rounds 2 --candidates 'transformers, one at a time' ours
    python benchmarks/vision_tower.py --device cuda --dtype bfloat16
    cp benchmarks/results/*_cuda.* docs/images/engine_cuda.png "$results"
    send
    python benchmarks/training.py --device cuda --shape 7b --layers 4 --batch-size 16
    python benchmarks/training.py --device cuda
    cp benchmarks/results/*_cuda.json "$results"
    send
fi

send_model() {
    python benchmarks/gpu/export.py "$RUN" "$results/model" && cp "$RUN/metrics.jsonl" "$results" && send
}
(while sleep 60; do send_model || true; done) &
sender=$!
trap 'kill $sender 2>/dev/null || true' EXIT
status=0
timeout --preserve-status --signal=TERM "${TRAIN_SECONDS:-0}" python -m ferret_core.cli train \
    --config ferret_core/training/configs/playground.yaml init=playground output="$RUN" device="$DEVICE" steps="$STEPS" \
    batch_size=64 micro_batch_size=64 data.workers=12 playground.first_scene=10000000 checkpoint.minutes=0.9 \
    schedule.decay="$((STEPS / 3))" "$@" || status=$?
kill $sender
wait $sender 2>/dev/null || true
[ $status = 0 ] || [ $status = 143 ] || exit $status    # 143: stopped, and saved
send_model
python -m ferret_core.cli eval playground --model "$results/model" --scenes "${SCENES:-1000}" --batch-size 256 --output "$results/evaluation"
send
exit "${tests_failed:-0}"

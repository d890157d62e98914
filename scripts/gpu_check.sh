#!/usr/bin/env bash
# All that one GPU can say of this project, in under ten minutes: tests that need it, waits of the host, and
# speed beside torchvision's, whose outputs have to agree first. Prints a report in Markdown, and ends with exit
# status 1 where a part failed.
#
#     bash scripts/gpu_check.sh > gpu.md
#     PYTHON=python3.12 IMAGES=val2017 bash scripts/gpu_check.sh > gpu.md
#     DEVICE=cpu SHORT_SIDE=96 ROUNDS=1 bash scripts/gpu_check.sh    # to try the script itself without a GPU
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python} DEVICE=${DEVICE:-cuda} ROUNDS=${ROUNDS:-10}
SHORT_SIDE=${SHORT_SIDE:-800}
sides=(--device "$DEVICE" --rounds "$ROUNDS" --short_side "$SHORT_SIDE" --max_side "$((SHORT_SIDE * 5 / 3))")
[ -n "${IMAGES:-}" ] && sides+=(--images "$IMAGES")
failed=0

part() {  # title, seconds at most, command
    local title=$1 limit=$2 status=0 begun=$SECONDS
    shift 2
    printf '\n## %s\n\n' "$title"
    timeout "$limit" "$@" 2>&1 || status=$?
    printf '\n`%s`: exit status %d, %d s\n' "$*" "$status" "$((SECONDS - begun))"
    [ "$status" -eq 0 ] || failed=1
}

printf '# fpn on %s\n' "$("$PYTHON" -c "
import torch
gpu = '$DEVICE' != 'cpu'
print(torch.cuda.get_device_name() if gpu else 'a CPU', f'torch {torch.__version__}', sep=', ')")"
part "Tests that need a GPU, and waits" 150 "$PYTHON" -m pytest -q -m gpu tests -p no:cacheprovider
part "Waits, counted" 60 "$PYTHON" scripts/benchmark.py waits --images "[1, 8]"
part "Inference, fp32" 90 "$PYTHON" scripts/benchmark.py infer "${sides[@]}" --batch 4
part "Inference, bf16" 60 "$PYTHON" scripts/benchmark.py infer "${sides[@]}" --batch 4 --precision bf16
part "A training step, fp32" 90 "$PYTHON" scripts/benchmark.py train "${sides[@]}" --batch 8
part "A training step, bf16" 60 "$PYTHON" scripts/benchmark.py train "${sides[@]}" --batch 8 --precision bf16
part "RoI pooling" 40 "$PYTHON" scripts/benchmark.py roi --device "$DEVICE" --rounds "$ROUNDS"
exit "$failed"

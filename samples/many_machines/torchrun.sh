#!/bin/sh
# torchrun.sh MODEL WORKERS: images by so many workers of this machine, and a model that is calibrated on them.
# The digits remember how their inputs were normalised; for another model add --normalize.
# Below 8 bits, --train-slices "$workers" has them tune together, too.
# On several machines, on each of them: torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 ...
set -eu
model=$1 workers=$2
# The same number of threads everywhere: the bytes follow from it.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
torchrun --nproc-per-node "$workers" --max-restarts 3 -m onnxdfq compress "$model" \
    --method zeroq --images 256 --bits w8a8 --work-dir work -o together.onnx

#!/bin/sh
#SBATCH --job-name=images
#SBATCH --array=1-8
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
# sbatch slurm.sh MODEL FOLDER: task K makes the shard K/8. Then, once all are done:
#   sbatch --dependency=afterok:JOB --wrap "onnxdfq images merge FOLDER -o images.npz"
set -eu
model=$1 folder=$2
mkdir -p "$folder" "work/$SLURM_ARRAY_TASK_ID"
# The same number of threads in all tasks: merge refuses others, for the bytes follow from it.
export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"
# A folder for each task: a task that is requeued goes on where it was.
onnxdfq synthesize "$model" --method genie --effort standard --images 4096 --normalize imagenet --seed 0 \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --work-dir "work/$SLURM_ARRAY_TASK_ID" \
    -o "$folder/$SLURM_ARRAY_TASK_ID.npz"

"""Shards of images as jobs of submitit, on Slurm or on this machine, and merged when all are done.

python submitit_shards.py MODEL FOLDER [--shards 4] [--cluster slurm|local] [--method zeroq] [--images 256]
"""

import argparse
from functools import partial
from pathlib import Path


def make(shard: str, model: Path, output: Path, method: str, images: int) -> Path:
    """One shard, made where the job runs."""
    import torch

    import onnxdfq

    torch.set_num_threads(1)  # the same everywhere: the bytes follow from it
    onnxdfq.synthesize(model, shard=shard, output=output, method=method, images=images, force=True)
    return output


def main() -> None:
    import submitit

    import onnxdfq

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--shards", type=int, default=4)
    arguments.add_argument("--cluster", default="slurm")
    arguments.add_argument("--method", default="zeroq")
    arguments.add_argument("--images", type=int, default=256)
    given = arguments.parse_args()
    given.folder.mkdir(exist_ok=True)
    executor = submitit.AutoExecutor(folder="logs", cluster=given.cluster)
    executor.update_parameters(timeout_min=240, cpus_per_task=1)
    one = partial(make, model=given.model.resolve(), method=given.method, images=given.images)
    numbers = range(1, given.shards + 1)
    jobs = [
        executor.submit(one, f"{number}/{given.shards}", output=(given.folder / f"{number}.npz").resolve())
        for number in numbers
    ]
    for job in jobs:
        job.result()
    merged = onnxdfq.merge_images(given.folder, output="images.npz", force=True)
    print(f"{len(merged)} images in images.npz")


if __name__ == "__main__":
    main()

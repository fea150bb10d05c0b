"""Makes the artefacts of onnxruntime-training; runs in an interpreter that has it, where onnxdfq is not.

Reads from stdin, as JSON: model, folder, trained and frozen (names), loss, optimizer.
"""

import json
import sys


def main() -> None:
    """Writes training_model.onnx, eval_model.onnx, optimizer_model.onnx and checkpoint to the folder."""
    import onnx
    from onnxruntime.training import artifacts

    given = json.load(sys.stdin)
    losses = {"cross-entropy": artifacts.LossType.CrossEntropyLoss, "mse": artifacts.LossType.MSELoss}
    optimizers = {"adam": artifacts.OptimType.AdamW, "sgd": artifacts.OptimType.SGD}
    artifacts.generate_artifacts(
        onnx.load(given["model"]),
        requires_grad=given["trained"],
        frozen_params=given["frozen"],
        loss=losses[given["loss"]],
        optimizer=optimizers[given["optimizer"]],
        artifact_directory=given["folder"],
    )


if __name__ == "__main__":
    main()

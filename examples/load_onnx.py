"""The exported network in ONNX Runtime alone: neither torch nor freeprune is imported, as on the machine that serves it.

python examples/load_onnx.py runs/own/model.onnx
"""

import argparse

import numpy as np
import onnxruntime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("onnx", help="model.onnx of a run")
    session = onnxruntime.InferenceSession(parser.parse_args().onnx, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for batch in (1, 5):  # the batch is free; the other sizes are fixed
        images = np.random.default_rng(0).random((batch, *given.shape[1:]), dtype=np.float32)
        (logits,) = session.run(None, {given.name: images})
        print(f"{batch} image(s) of {given.shape[1:]}: classes {logits.argmax(1).tolist()}")  # noqa: T201


if __name__ == "__main__":
    main()

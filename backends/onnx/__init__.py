"""ONNX files: written, run, timed, compressed."""

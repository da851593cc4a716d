"""What computes: onnxruntime sessions and nearest-neighbour engines."""

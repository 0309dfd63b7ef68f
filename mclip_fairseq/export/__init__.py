"""Writers of models for other tools: model directories, ONNX, open_clip, model cards."""

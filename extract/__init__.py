"""Turn images into features: sources, decoding, preprocessing, backbones, engines, the pipeline."""

"""A real ImageNet model, EfficientNet-Lite0, on PACS: which rule keeps the right weights."""

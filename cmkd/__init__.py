"""Cross-Modal Knowledge Distillation: losses that adapt a vision-language model to an unlabelled target domain."""

"""Semantic segmentation across domains: DeepLab-V2 (App. J) and Mask2Former (App. L) with residual sparse training."""

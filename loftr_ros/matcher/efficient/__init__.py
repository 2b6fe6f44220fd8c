"""EfficientLoFTR (Wang et al., CVPR 2024, arXiv 2403.04765), written from the paper, for streams."""

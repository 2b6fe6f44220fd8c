"""LoFTR (Sun et al., CVPR 2021, arXiv 2104.00680), written from the paper, for streams."""

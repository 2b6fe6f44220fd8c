"""Visual localisation as LoFTR's paper measures it (section 4.4): hloc's files, COLMAP's points, poses, recall."""

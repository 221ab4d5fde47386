"""RefClips: generated clips of moving shapes, in the layouts of the three video data sets."""

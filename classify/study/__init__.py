"""Studies: probes on the features of several backbones on several data sets, in one table."""

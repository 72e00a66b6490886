"""Reading and writing of audio, manifests, data sets and folders."""

"""Read and write audio, manifests, data sets and folders."""

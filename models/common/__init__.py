"""What the training recipe and the converter share: the pixel contract, the graph a worker runs, the package folder."""

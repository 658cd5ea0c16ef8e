"""The parts of the training recipe, in the order in which train.py uses them: images, network, loop, package."""

"""Files of Keras read into torch modules without Keras or TensorFlow, and without running anything in them.

A file's tensors are numbered as Keras has them: the batch first, features last. A module here holds the features at
axis 1, as torch's convolutions do (axes.py): a tensor (N, L, C) of Keras is (N, C, L) between the layers.
"""

"""What runs on a GPU: the CUDA driver, arrays of other libraries, launches. Importing it touches none of them."""

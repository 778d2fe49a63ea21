"""What is trained: configuration, without PyTorch."""

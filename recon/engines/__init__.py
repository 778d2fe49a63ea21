"""Who steps the optimisers: DeepSpeed or plain PyTorch."""

"""What every node sees of itself (NVML, host, transfers), and one picture of the cluster made of it."""

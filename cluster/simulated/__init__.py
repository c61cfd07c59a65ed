"""The simulated shell: the live machines on a heap in virtual time. No tensors, threads, clocks or sockets."""

import numpy as np


def ring_all_reduce(communicator, array):
    n, r = communicator.size, communicator.rank
    parts = np.array_split(array, n)
    right, left = (r + 1) % n, (r - 1) % n
    for step in range(2 * (n - 1)):
        communicator.send(parts[(r - step) % n], right)
        received = np.empty_like(parts[(r - step - 1) % n])
        communicator.recv(received, left).wait()
        if step < n - 1:
            parts[(r - step - 1) % n] += received
        else:
            parts[(r - step - 1) % n][:] = received

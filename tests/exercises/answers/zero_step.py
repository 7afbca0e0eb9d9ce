import numpy as np


def zero_step(communicator, weights, gradients, state, update, max_norm):
    size = state.size
    mine = weights[communicator.rank * size :][:size]
    mean = np.empty(size)
    communicator.reduce_scatter(gradients, mean, "sum").wait()
    mean /= communicator.size
    squares = np.array([mean @ mean])
    communicator.all_reduce(squares, "sum").wait()
    norm = squares[0] ** 0.5
    if norm > max_norm:
        mean *= max_norm / norm
    update(mine, mean, state)
    communicator.all_gather(mine.copy(), weights).wait()

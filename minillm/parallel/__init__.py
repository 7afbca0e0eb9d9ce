"""Training on several processes, called ranks: they divide the batch, the model, or both, and compute one step.

Read in this order: the operations between ranks (communicator.py), over shared memory on one machine
(shared_memory.py) or between GPUs (nccl.py); how ranks find each other (place.py, rendezvous.py, launch.py); the four
ways to divide the work (data_parallel.py, zero.py, tensor_parallel.py, pipeline.py); and all of them at once (mesh.py).
"""

"""The same training step on several processes, called ranks: the model, the batch, or both, in parts.

Read in this order: what ranks say to each other (communicator.py), over shared memory on one machine
(shared_memory.py) or between GPUs (nccl.py); how they find each other (rendezvous.py, launch.py); and the four ways to
divide the work: data_parallel.py, zero.py, tensor_parallel.py, pipeline.py.
"""

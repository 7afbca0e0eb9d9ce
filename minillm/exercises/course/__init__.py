"""The exercises, one in each file; their order stands in `minillm.exercises.ORDER`."""

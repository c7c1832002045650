"""How a worker's process ends where it says more than that it did."""

# It has to be started again, and is well: what it needs can be had only once in a process.
BEGINS_ANEW = 75

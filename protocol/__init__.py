"""What every process of a cluster agrees on: values, messages, their bytes and the sockets they travel on."""

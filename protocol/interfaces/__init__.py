"""The network of a host: which interfaces it has, how two hosts may reach each other, and what is wrong between them."""

"""Unmodified clients of others against a real cluster: `./launch.sh test --clients [NAME ...]`, beside the main suite.

A client is a folder: `requirements.txt` or `package.json` pins what is installed, into `.clients/NAME` of the checkout, where it
stays between runs; `calls.py` or `calls.mjs` makes the calls, in the client's own environment. Each call passes or fails
(`helpers/calls.py`, `helpers/calls.mjs`); a table ends the run. It needs Python alone, and for those in JavaScript node and npm.

Two addresses serve all of them: TANDEM_URL is a cluster of the bundled model; PLAYED_URL is the same API before a model that
plays what the prompt holds (`played.py`), for what takes a model that is able, as an agent does; MODEL_FOLDER is the bundled one. Clients see an environment of
their own: no keys, a new home, and no way out but to this machine.
"""

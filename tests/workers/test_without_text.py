"""mlx-lm without its half that knows text: every architecture is there all the same, and nothing of transformers."""

import json
import os
import subprocess
import sys

from workers import zoo

CODE = """
import json, pathlib, sys
from workers.without_text import import_without_text
import_without_text()
from protocol.errors import ModelError
from workers.model.loading import load
from workers import zoo
from workers.zoo.configurations import model_class
lacking = []
for name in zoo.architectures():
    try:
        model_class(name)
    except ModelError:
        lacking.append(name)
load(pathlib.Path(sys.argv[1]))
import mlx_lm.utils
try:
    mlx_lm.utils.load_tokenizer(pathlib.Path(sys.argv[1]))
except ImportError as error:
    print(json.dumps([lacking, "transformers" in sys.modules, str(error)]))
"""


def test_every_architecture_and_its_weights_are_there_and_tokenizers_are_not(tmp_path):
    model = zoo.make_tiny_model("llama", tmp_path)
    ended = subprocess.run([sys.executable, "-c", CODE, model], capture_output=True, text=True, check=True)
    lacking, has_transformers, refusal = json.loads(ended.stdout.splitlines()[-1])
    assert lacking == ["olmo"]  # its code needs a package of its own
    assert not has_transformers
    assert refusal == "a worker loads no tokenizer"


def test_module_is_run_so_with_its_arguments(tmp_path):
    module = tmp_path / "of_text.py"
    module.write_text("import sys, mlx_lm.utils; print(__name__, sys.argv[1:], 'transformers' in sys.modules)")
    command = [sys.executable, "-m", "workers.without_text", module.stem, "--a", "b"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["", str(tmp_path)])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "__main__ ['--a', 'b'] False"

"""Who guesses is what the configuration names, and a draft with another tokenizer is refused."""

import json
import shutil

import pytest

from cluster.planning.draft_files import NO_DRAFT, ChosenDraft, choose_draft
from protocol.errors import ModelError, UsageError
from protocol.messages import Guessing
from protocol.model_digest import model_digest
from workers.zoo import make_tiny_model


@pytest.fixture
def models(tmp_path):
    make_tiny_model("llama", tmp_path / "tandem-demo", seed=1)
    make_tiny_model("llama", tmp_path / "tandem-demo-draft", seed=2)
    make_tiny_model("qwen3", tmp_path / "other", seed=3)
    return tmp_path


def test_bundled_draft_guesses_for_the_bundled_model(models):
    draft = models / "tandem-demo-draft"
    chosen = choose_draft("auto", models / "tandem-demo", models)
    assert chosen == (Guessing(draft=model_digest(draft)), draft, (draft / "model.safetensors").stat().st_size)
    assert chosen.name == "tandem-demo-draft"


def test_for_other_models_nobody_guesses_unless_that_is_asked_for(models):
    chosen = choose_draft("auto", models / "other", models)
    assert chosen == ChosenDraft(Guessing())
    assert chosen.name is None


def test_nothing_is_guessed_where_the_draft_is_missing_or_nobody_wants_it(models):
    assert choose_draft("off", models / "tandem-demo", models) == NO_DRAFT
    shutil.rmtree(models / "tandem-demo-draft")
    assert choose_draft("auto", models / "tandem-demo", models) == ChosenDraft(Guessing())


def test_lookup_needs_no_model(models):
    chosen = choose_draft("lookup", models / "other", models)
    assert chosen == ChosenDraft(Guessing(lookup=True))
    assert chosen.name == "lookup"


def test_any_model_with_the_same_tokenizer_may_guess(models):
    written = json.loads((models / "other" / "tokenizer.json").read_bytes())
    (models / "other" / "tokenizer.json").write_text(json.dumps(written, indent=7))
    assert choose_draft(str(models / "other"), models / "tandem-demo", models).path == models / "other"


def change(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def test_draft_with_another_tokenizer_is_refused(models):
    file = models / "other" / "tokenizer.json"
    tokenizer = json.loads(file.read_bytes())
    change(tokenizer)
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match="has another tokenizer than"):
        choose_draft(str(models / "other"), models / "tandem-demo", models)
    file.unlink()
    with pytest.raises(UsageError, match="has another tokenizer than"):
        choose_draft(str(models / "other"), models / "tandem-demo", models)


def test_draft_whose_tokenizer_is_damaged_says_so(models):
    (models / "other" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="is no tokenizer"):
        choose_draft(str(models / "other"), models / "tandem-demo", models)


def test_draft_that_does_not_exist_says_so(models):
    with pytest.raises(UsageError, match="does not exist"):
        choose_draft(str(models / "nowhere"), models / "tandem-demo", models)

"""Every word of the toybox is one token; everything else is still read, byte by byte."""

import json

from transformers import CLIPTokenizer

from dreamfusion_jax.toybox import captions, tokenizer


def test_every_word_is_one_token(tmp_path):
    tokenizer.write(tmp_path)
    tokens = CLIPTokenizer.from_pretrained(str(tmp_path))
    assert [word for word in captions.vocabulary() if len(tokens.tokenize(word)) != 1] == []
    sizes = tokenizer.sizes(tmp_path)
    assert len(tokens) == sizes["vocab_size"]
    ids = tokens("a red chair", padding="max_length").input_ids
    assert len(ids) == tokenizer.MAX_LENGTH
    assert ids[0] == sizes["bos_token_id"]
    assert set(ids[4:]) == {sizes["eos_token_id"]}
    unknown = tokens("Zebra!").input_ids[1:-1]
    assert len(unknown) > 1 and sizes["eos_token_id"] not in unknown


def test_numbers_that_networks_were_trained_on_are_kept(tmp_path):
    tokenizer.write(tmp_path)
    path = tmp_path / "vocab.json"
    pieces = json.loads(path.read_text())
    pieces["car</w>"], pieces["cap</w>"] = pieces["cap</w>"], pieces["car</w>"]
    path.write_text(json.dumps(pieces, ensure_ascii=False))
    tokenizer.write(tmp_path)
    assert json.loads(path.read_text()) == pieces
    del pieces["car</w>"]
    path.write_text(json.dumps(pieces, ensure_ascii=False))
    tokenizer.write(tmp_path)
    assert "car</w>" in json.loads(path.read_text())

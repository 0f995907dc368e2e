import numpy as np

from nml_jax.data import tokenize

CAPTIONS = [
    "a bold serif Greek letter omega in dark red",
    "a thin sans letter b on a striped background",
    "ünïcode 🙂",
]


def test_ids_start_end_and_pad(tmp_path):
    tokenizer = tokenize.train(CAPTIONS * 5, vocab_size=400)
    tokens = tokenize.encode(tokenizer, [*CAPTIONS, ""], 40)
    assert tokens.shape == (4, 40)
    for row, caption in zip(tokens, CAPTIONS, strict=False):
        last = int(np.flatnonzero(row)[-1])
        assert row[0] == tokenize.START
        assert row[last] == tokenize.END
        assert tokenizer.decode(list(row[1:last])).strip() == caption.lower()
    np.testing.assert_array_equal(tokens[3, :3], [tokenize.START, tokenize.END, tokenize.PAD])


def test_long_captions_keep_their_beginning_and_the_end_token():
    tokenizer = tokenize.train(CAPTIONS, vocab_size=300)
    short, long = (tokenize.encode(tokenizer, CAPTIONS, n) for n in (6, 60))
    np.testing.assert_array_equal(short[:, :5], long[:, :5])
    assert (short[:, 5] == tokenize.END).all()


def test_training_does_not_depend_on_the_run_and_survives_the_disk(tmp_path):
    one, two = (tokenize.train(CAPTIONS * 7, vocab_size=320) for _ in range(2))
    assert one.to_str() == two.to_str()
    one.save(str(tmp_path / "t.json"))
    assert tokenize.load(tmp_path / "t.json").to_str() == one.to_str()

import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nml_jax.core.errors import UserError
from nml_jax.data import columns, decode, source
from nml_jax.noise import caption_swap


def encoded(mode: str, kind: str, shade: int = 200) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (10, 8), shade if mode == "L" else tuple([shade] * len(mode))).save(buffer, kind)
    return buffer.getvalue()


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Twelve grey images with labels, prepared in the format that a test asks for."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            yield i, {"id": f"im{i}", "image": io.BytesIO(encoded("RGB", "PNG", 10 * i)), "label": i % 3}


@pytest.fixture
def folder(tmp_path) -> str:
    Tiny(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    return str(tmp_path)


def test_a_tfds_folder_opens_by_name(folder):
    opened = source.open("tiny", "train", data_dir=folder, in_memory=True)
    assert len(opened) == 12
    numbers = [int(i.removeprefix("im")) for i in opened.ids()]
    assert sorted(numbers) == list(range(12))
    for i, number in enumerate(numbers):
        assert opened.image(i).shape == (8, 10, 3)
        assert (opened.image(i) == 10 * number).all()
        assert opened.column("label")[i] == number % 3
    assert opened.num_classes("label") == 3
    assert len(source.open("tiny", "train[:25%]", data_dir=folder)) == 3


def test_columns_are_read_once_and_kept_beside_the_data(folder, monkeypatch):
    first = source.open("tiny", "train[2:]", data_dir=folder)
    expected = {field: first.column(field).tolist() for field in ("label", "id")}
    assert len(expected["id"]) == 10
    source.open.cache_clear()
    again = source.open("tiny", "train[2:]", data_dir=folder)
    monkeypatch.setattr(again, "_records", [None] * 10)  # nothing to read any more
    assert {field: again.column(field).tolist() for field in expected} == expected
    assert again.ids().tolist() == expected["id"]
    assert pickle.loads(pickle.dumps(again))._columns == {}  # what workers get
    # A damaged file, or one of another length, is read anew.
    for damage in (b"", b"\x93NUMPY"):
        for file in again._folder.glob("*label.npy"):
            file.write_bytes(damage)
        source.open.cache_clear()
        assert source.open("tiny", "train[2:]", data_dir=folder).column("label").tolist() == expected["label"]
    np.save(columns.path(again._folder, "train[2:]", "label", text=False), np.arange(3))
    source.open.cache_clear()
    assert source.open("tiny", "train[2:]", data_dir=folder).column("label").tolist() == expected["label"]
    assert not list(again._folder.glob("*.aside"))


def test_columns_of_a_folder_that_cannot_be_written(folder, monkeypatch):
    monkeypatch.setattr(source.Path, "mkdir", lambda *a, **k: (_ for _ in ()).throw(PermissionError()))
    opened = source.open("tiny", "train", data_dir=folder)
    assert sorted(opened.column("label").tolist()) == [0] * 4 + [1] * 4 + [2] * 4


class Broken(Tiny, skip_registration=True):
    """Three records, of which the second is cut short."""

    def _generate_examples(self):
        whole = encoded("RGB", "JPEG")
        for i, image in enumerate((whole, whole[:-20], whole)):
            yield i, {"id": f"im{i}", "image": io.BytesIO(image), "label": i}


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_undecodable_image_is_an_error_when_it_is_asked_for(in_memory, tmp_path):
    Broken(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    opened = source.open("broken", "train", data_dir=str(tmp_path), in_memory=in_memory)
    bad = opened.ids().tolist().index("im1")
    for i in range(3):
        if i == bad:
            with pytest.raises(
                decode.Undecodable, match=rf"record im1 \({bad} of broken train\) cannot be decoded"
            ):
                opened.image(i)
        else:
            assert opened.image(i).shape == (8, 10, 3)
            for decoder in decode.DECODERS:
                np.testing.assert_array_equal(opened.picture(i, decoder).rgb(), opened.image(i))


def test_what_is_not_there_is_said(folder):
    with pytest.raises(UserError, match="There is no data set 'tinny'.*Did you mean 'tiny'"):
        source.open("tinny", "train", data_dir=folder)
    with pytest.raises(UserError, match="tfds build mnist --file_format=array_record --data_dir="):
        source.open("mnist", "train", data_dir=folder)
    with pytest.raises(UserError, match="no split 'test'.*it has train"):
        source.open("tiny", "test", data_dir=folder)
    opened = source.open("tiny", "train", data_dir=folder)
    with pytest.raises(UserError, match="no label 'colour'; it has label"):
        opened.num_classes("colour")
    with pytest.raises(UserError, match="no field 'caption'; it has"):
        opened.column("caption")


def test_tfrecord_folders_are_refused_with_the_command_that_converts_them(folder, tmp_path):
    for info in tmp_path.glob("**/dataset_info.json"):
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"TFRecord.*tfds convert_format --dataset_dir=.*/tiny "):
        source.open("tiny", "train", data_dir=folder)


class Captioned(Tiny, skip_registration=True):
    """Captions of very different length; `Captioned.TEXTS` says which."""

    TEXTS = ("one", "x" * 10_000, "three", "café")

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(),
            "caption": tfds.features.Text(),
            "count": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self):
        for i, text in enumerate(self.TEXTS):
            yield i, {"id": f"im{i}", "image": io.BytesIO(encoded("RGB", "PNG")), "caption": text, "count": i}


def captioned(monkeypatch, tmp_path, *captions) -> source.Source:
    monkeypatch.setattr(Captioned, "TEXTS", captions)
    Captioned(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    return source.open("captioned", "train", data_dir=str(tmp_path))


def test_a_long_caption_costs_its_own_bytes_only(monkeypatch, tmp_path):
    texts = ("one", "x" * 10_000, "three", "café")
    opened = captioned(monkeypatch, tmp_path, *texts)
    found = dict(zip(opened.ids().tolist(), opened.captions("caption").tolist(), strict=True))
    assert found == {f"im{i}": text for i, text in enumerate(texts)}
    assert opened.column("caption").itemsize == 16
    assert opened.ids().dtype == "<U3"  # files of other frameworks have them
    # Kept beside the data, and the rows of a slice are found in the column of the whole split.
    source.open.cache_clear()
    for split in ("train", "train[1:3]", "train[3:]+train[:1]"):
        again = source.open("captioned", split, data_dir=str(tmp_path))
        monkeypatch.setattr(again, "_records", [None] * len(again))
        assert [found[i] for i in again.ids()] == again.captions("caption").tolist()


def test_missing_captions_are_an_error_before_training(monkeypatch, tmp_path):
    opened = captioned(monkeypatch, tmp_path, "one", "", " \n", "four")
    assert sorted(opened.column("caption")) == ["", " \n", "four", "one"]
    with pytest.raises(
        UserError, match=r"2 of 4 records of 'captioned' 'train' have no caption .*im[12], im[12]\)"
    ):
        opened.captions("caption")
    with pytest.raises(UserError, match="'count' of 'captioned' is int64, not text"):
        opened.captions("count")
    with pytest.raises(UserError, match="no field 'text'"):
        opened.captions("text")


def test_text_that_is_not_utf8_is_an_error_that_names_the_record(monkeypatch, tmp_path):
    opened = captioned(monkeypatch, tmp_path, "one", "two")
    records = [opened._records[i] for i in range(2)]
    records[1]["caption"] = b"\xff"
    monkeypatch.setattr(opened, "_records", records)
    with pytest.raises(UserError, match="The caption of record 1 of captioned train is not UTF-8"):
        opened.column("caption")


def test_equal_ids_are_an_error_before_training(monkeypatch, tmp_path):
    opened = captioned(monkeypatch, tmp_path, "one", "two", "three")
    records = [opened._records[i] | {"id": b"same"} for i in range(3)]
    monkeypatch.setattr(opened, "_records", records)
    with pytest.raises(UserError, match="ids are not unique: rows 0 and 1 both have .*same"):
        caption_swap.sources(opened.captions("caption"), ratio=0.0, seed=0, ids=opened.ids())

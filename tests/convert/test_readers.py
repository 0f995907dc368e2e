"""Image folders, and tables of captions; tar shards are in test_convert.py."""

import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from downloads import image, pair, pairs
from test_convert import config, dropped, opened

from configs.convert import table as table_config
from nml_jax.convert import folders, tables
from nml_jax.core import stage
from nml_jax.core.errors import UserError


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files:
        (folder / name).write_bytes(content)


def run(values, workdir):
    stage.execute(values, workdir)
    return json.loads((workdir / "report.json").read_text())


def test_image_folders_as_img2dataset_writes_them(tmp_path):
    write(tmp_path / "in/00000", pairs(0, 3))
    write(tmp_path / "in/00001", [*pairs(3, 2), ("x.png", image(kind="PNG")), ("y.txt", b"no image")])
    pa.parquet.write_table(pa.table({"url": ["u"]}), tmp_path / "in/00000.parquet")
    (tmp_path / "in/00001/dir.jpg").mkdir()
    report = run(config(tmp_path / "in", **{"read.name": "folders"}), tmp_path / "w")
    assert (report["kept"], report["dropped"]) == (5, {"no_image": 1, "no_caption": 1})
    ids = [f"web/0000{i // 3}/{i:09d}" for i in range(5)]
    assert opened(tmp_path / "w").ids().tolist() == ids
    assert opened(tmp_path / "w").captions("caption").tolist() == [f"caption {i}" for i in range(5)]


def test_a_folder_of_its_own_and_two_images_for_one_text(tmp_path):
    write(tmp_path / "in", [*pair("a", 0), ("a.png", image(1, kind="PNG"))])
    report = run(config(tmp_path / "in", **{"read.name": "folders"}), tmp_path / "w")
    assert (report["kept"], report["dropped"]) == (1, {"duplicate_id": 1})
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no folder with images"):
        folders.shards("s", str(tmp_path / "nothing"), scratch="")


def table_of(place, **changes):
    values = table_config.get_config("smoke")
    values.sources.table = str(place)
    values.name, values.progress = "web", False
    values.read.options.update(changes)
    return values


ROWS = {
    "file": ["a/0.jpg", "1.png", "../secret.jpg", "/etc/passwd", "none.jpg", "2.jpg", "3.jpg", "1.png", None],
    "caption": ["first", "a line\nand another", "out", "out", "absent", "", None, "again", "no file"],
    "tags": ["x", "y", "", "", "", "", "", "", ""],
}
EXPECTED = {
    ("table/../secret.jpg", "outside_folder"),
    ("table//etc/passwd", "outside_folder"),
    ("table/none.jpg", "no_image"),
    ("table/2.jpg", "empty_caption"),
    ("table/1.png", "duplicate_id"),
}


def images(folder):
    write(folder.parent, [("secret.jpg", image(9))])
    write(folder / "a", [("0.jpg", image(0))])
    write(folder, [("1.png", image(1, kind="PNG")), ("2.jpg", image(2)), ("3.jpg", image(3))])


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv"])
def test_tables_of_captions(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS", 2)  # shards of two rows
    images(tmp_path / "in")
    path = tmp_path / f"in/list.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(pa.table(ROWS), path, row_group_size=3)
    else:
        options = pa.csv.WriteOptions(delimiter="\t" if kind == "tsv" else ",")
        pa.csv.write_csv(
            pa.table({k: [v or "" for v in column] for k, column in ROWS.items()}), path, options
        )
    values = table_of(path, also=("tags",))
    values.keep.fields = ("tags",)
    report = run(values, tmp_path / "w")
    assert (report["kept"], report["samples"], report["shards"]) == (2, 9, 5)
    found = opened(tmp_path / "w")
    assert found.captions("caption").tolist() == ROWS["caption"][:2]
    assert found.column("tags").tolist() == ["x", "y"]
    assert found.ids().tolist() == ["table/a/0.jpg", "table/1.png"]
    empty = "no_caption" if kind == "parquet" else "empty_caption"  # text files have no null
    assert dropped(tmp_path / "w") >= EXPECTED | {("table/3.jpg", empty)}


def test_text_that_is_not_utf8_drops_its_row_only(tmp_path):
    images(tmp_path / "in")
    (tmp_path / "in/list.csv").write_bytes(b"file,n,caption\n2.jpg,1,caf\xe9\n3.jpg,x,caf\xc3\xa9\n")
    report = run(table_of(tmp_path / "in/list.csv"), tmp_path / "w")
    assert (report["kept"], report["dropped"]) == (1, {"caption_not_text": 1})
    assert opened(tmp_path / "w").captions("caption").tolist() == ["café"]


def test_tables_that_cannot_work_say_so(tmp_path):
    images(tmp_path / "in")
    path = tmp_path / "in/list.csv"
    for content, words in (
        ("path,caption\na,b\n", "has no column file; it has path, caption"),
        ("file,caption\na,b,c\n", "cannot be read"),
        ("", "cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=words):
            tables.shards("s", str(tmp_path / "in"), scratch=str(tmp_path / "scratch"))
    path.unlink()
    parquet = tmp_path / "in/list.parquet"
    parquet.write_bytes(b"PAR1, or so it says")
    with pytest.raises(UserError, match="cannot be read"):
        tables.shards("s", str(tmp_path / "in"), scratch="")
    pa.parquet.write_table(pa.table({"file": ["2.jpg"], "caption": [[1, 2]]}), parquet)
    with pytest.raises(UserError, match=r"column 'caption' .* is list.*; valid is text"):
        tables.shards("s", str(tmp_path / "in"), scratch="")
    with pytest.raises(UserError, match="is no table"):
        tables.shards("s", str(tmp_path / "in/a"), scratch="")

import errno
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from downloads import image, pair, pairs, tar
from ml_collections import ConfigDict

from configs.convert import pairs as pairs_config
from nml_jax.convert import beam, local, part, publish, webdataset
from nml_jax.core import stage
from nml_jax.core.errors import UserError
from nml_jax.data import source
from nml_jax.noise import caption_swap

ROOT = Path(__file__).parents[2]


def config(shards, *, workers=0, sources=None, **changes):
    values = pairs_config.webdataset("web", tuple(sources or ("web",)), "smoke")
    values.sources.update(sources or {"web": str(shards)})
    values.runner.options.workers = workers
    values.progress = False
    for key, value in changes.items():
        *path, last = key.split(".")
        node = values
        for name in path:
            node = node[name]
        node[last] = ConfigDict(value) if isinstance(value, dict) else value
    return values


def convert(shards, workdir, **options):
    stage.execute(config(shards, **options), workdir)
    return json.loads((workdir / "report.json").read_text())


def opened(workdir, split="train"):
    source.open.cache_clear()
    return source.open("web", split, data_dir=str(workdir))


def dropped(workdir):
    lines = (workdir / "dropped.jsonl").read_text().splitlines()
    return {(line["id"], line["reason"]) for line in map(json.loads, lines)}


def files_of(workdir):
    """Every file of the data set, by name."""
    folder = publish.folder(workdir, "web")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_tars_become_a_data_set_that_opens_by_name(tmp_path, capsys):
    tar(tmp_path / "in/00000.tar", pairs(0, 5))
    tar(tmp_path / "in/00001.tar", pairs(5, 3))
    (tmp_path / "in/00000_stats.json").write_text(
        json.dumps({"count": 7, "successes": 5, "failed_to_download": 2})
    )
    report = convert(tmp_path / "in", tmp_path / "w", **{"keep.fields": ("url",)})
    assert (report["samples"], report["kept"], report["dropped"], report["shards"]) == (8, 8, {}, 2)
    assert report["downloads"]["failed_to_download"] == 2
    assert "kept 8 of 8 pairs" in capsys.readouterr().out
    assert not (tmp_path / "w/parts").exists()
    found = opened(tmp_path / "w")
    assert found.ids().tolist() == [f"web/0000{i // 5}/{i:09d}" for i in range(8)]
    assert found.captions("caption").tolist() == [f"caption {i}" for i in range(8)]
    assert found.column("url").tolist() == [f"http://x.org/{i}" for i in range(8)]
    for i in range(8):
        expected = np.asarray(source.decode.rgb(image(i), name=""))
        np.testing.assert_array_equal(found.image(i), expected)
    part_of_it = opened(tmp_path / "w", "train[2:4]+train[7:]")
    assert part_of_it.captions("caption").tolist() == ["caption 2", "caption 3", "caption 7"]
    assert part_of_it.ids().tolist() == ["web/00000/000000002", "web/00000/000000003", "web/00001/000000007"]


def test_captions_and_ids_need_no_image_read(tmp_path, monkeypatch):
    tar(tmp_path / "in/0.tar", pairs(0, 4))
    convert(tmp_path / "in", tmp_path / "w")
    for split in ("train", "train[1:]"):
        found = opened(tmp_path / "w", split)
        monkeypatch.setattr(found, "_records", [None] * len(found))
        assert found.captions("caption").tolist() == [f"caption {i}" for i in range(4)][-len(found) :]
        assert len(found.ids()) == len(found)


BAD = {
    "no_image": [("k.txt", b"a text")],
    "no_caption": [("k.jpg", image())],
    "empty_caption": [("k.jpg", image()), ("k.txt", b" \n")],
    "caption_not_text": [("k.jpg", image()), ("k.txt", b"\xff\xfe caption")],
    "bad_json": [("k.jpg", image()), ("k.txt", b"a text"), ("k.json", b'{"url": ')],
    "undecodable": [("k.jpg", b"GIF89a, or so it says"), ("k.txt", b"a text")],
    "too_small": [("k.png", image(height=1, width=1, kind="PNG")), ("k.txt", b"a text")],
    "too_long": [("k.png", image(height=20, width=20_000, kind="PNG")), ("k.txt", b"a text")],
}
MORE = [
    ("undecodable", [("k.jpg", image()[:-40]), ("k.txt", b"cut short")]),
    ("undecodable", [("k.jpg", b""), ("k.txt", b"empty")]),
    (
        "undecodable",
        [("k.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"), ("k.txt", b"a program")],
    ),
    ("bad_json", [("k.jpg", image()), ("k.json", b"[" * 100_000)]),
    ("bad_json", [("k.jpg", image()), ("k.json", b"[1]"), ("k.txt", b"a text")]),
    ("no_caption", [("k.jpg", image()), ("k.json", b'{"caption": null}')]),
    *(
        ("caption_not_text", [("k.jpg", image()), ("k.json", json.dumps({"caption": wrong}).encode())])
        for wrong in (3, 1.5, True, ["a"], {"a": "b"}, "\ud800")
    ),
]


@pytest.mark.parametrize(("reason", "files"), [*BAD.items(), *MORE])
def test_what_cannot_be_used_is_counted_by_reason(reason, files, tmp_path):
    tar(tmp_path / "in/0.tar", [*pairs(0, 1), *files, *pairs(1, 1)])
    report = convert(tmp_path / "in", tmp_path / "w")
    assert (report["samples"], report["kept"], report["dropped"]) == (3, 2, {reason: 1})
    assert dropped(tmp_path / "w") == {("web/0/k", reason)}
    assert opened(tmp_path / "w").captions("caption").tolist() == ["caption 0", "caption 1"]


def test_decompression_bombs_are_refused_by_their_header(tmp_path):
    # 65,000 x 65,000 pixels; a file like this is 4 MB, its image 13 GB. The header is enough to say so.
    small = image(kind="PNG")
    bomb = small[:16] + (65_000).to_bytes(4, "big") * 2 + small[24:]
    tar(tmp_path / "in/0.tar", [*pairs(0, 1), ("b.png", bomb), ("b.txt", b"a bomb")])
    report = convert(tmp_path / "in", tmp_path / "w")
    assert report["kept"] == 1
    assert set(report["dropped"]) <= {"too_large", "undecodable"}  # its header's checksum is wrong, too


def test_without_verifying_only_headers_count(tmp_path):
    tar(tmp_path / "in/0.tar", [*pairs(0, 1), ("k.jpg", image()[:-40]), ("k.txt", b"cut short")])
    report = convert(tmp_path / "in", tmp_path / "w", **{"keep.verify": False})
    assert (report["kept"], report["dropped"]) == (2, {})


def test_pieces_in_any_order_hidden_files_and_other_members(tmp_path):
    files = pairs(0, 3)
    rest = [
        ("._000000000.jpg", b"resource"),
        ("README", b""),
        ("a/b.cls", b"1"),
        ("x.JPG", image(7)),
        ("x.TXT", b"X"),
    ]
    tar(tmp_path / "in/0.tar", sorted(files, key=lambda file: file[0].split(".")[1]) + rest)
    with tarfile.open(tmp_path / "in/0.tar", "a") as archive:
        link = tarfile.TarInfo("y.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    report = convert(tmp_path / "in", tmp_path / "w")
    assert (report["kept"], report["dropped"]) == (4, {})
    assert sorted(opened(tmp_path / "w").captions("caption")) == ["X", "caption 0", "caption 1", "caption 2"]


def test_names_that_lead_elsewhere_are_only_names(tmp_path):
    tar(
        tmp_path / "a/b/in/0.tar", pair("../../../evil", 1) + pair("/etc/evil", 2) + pair("x" * 300 + "\n", 3)
    )
    convert(tmp_path / "a/b/in", tmp_path / "a/b/w")
    assert sorted(p.name for p in tmp_path.rglob("*evil*")) == []
    assert not Path("/etc/evil.jpg").exists()
    ids = opened(tmp_path / "a/b/w").ids().tolist()
    assert ids[:2] == ["web/0/../../../evil", "web/0//etc/evil"]
    assert len(ids[2]) == len("web/") + 32  # a hash


@pytest.mark.parametrize("cut", [1, 100, 600, 5_000])
def test_truncated_tars_give_what_is_whole(cut, tmp_path):
    whole = tar(tmp_path / "in/0.tar", pairs(0, 6))
    end = whole.rstrip(b"\0")
    (tmp_path / "in/0.tar").write_bytes(end[: len(end) - cut])
    tar(tmp_path / "in/1.tar", pairs(6, 2))
    report = convert(tmp_path / "in", tmp_path / "w")
    assert report["faulty_shards"] == {"web/0": ["truncated_tar"]}
    kept = opened(tmp_path / "w").captions("caption").tolist()
    assert kept[-2:] == ["caption 6", "caption 7"]
    assert kept == sorted(kept)
    assert 3 <= len(kept) <= 8
    assert report["samples"] == report["kept"] + sum(report["dropped"].values())


def test_damaged_and_other_files_named_tar(tmp_path):
    whole = bytearray(tar(tmp_path / "in/damaged.tar", pairs(0, 6)))
    at = whole.index(b"000000003.jpg")
    whole[at : at + 512] = os.urandom(512)
    (tmp_path / "in/damaged.tar").write_bytes(whole)
    (tmp_path / "in/empty.tar").write_bytes(b"")
    (tmp_path / "in/text.tar").write_bytes(b"no tar at all, but long enough to be a header" * 100)
    (tmp_path / "in/zeros.tar").write_bytes(bytes(10_240))
    report = convert(tmp_path / "in", tmp_path / "w")
    assert report["faulty_shards"] == {
        "web/damaged": ["damaged_tar"],
        "web/empty": ["truncated_tar"],
        "web/text": ["not_a_tar"],
    }
    assert report["kept"] == 3


def test_a_header_that_leads_backwards_ends_the_tar(tmp_path):
    # Sizes may be negative in GNU's base-256 form: a reader that believed it would go round for ever.
    file = bytearray(tar(tmp_path / "in/0.tar", pairs(0, 2)))
    at = file.index(b"000000001.jpg")
    file[at + 124 : at + 136] = b"\xff" * 10 + b"\xf0\x00"
    file[at + 148 : at + 156] = b" " * 8
    file[at + 148 : at + 156] = b"%06o\0 " % sum(file[at : at + 512])
    (tmp_path / "in/0.tar").write_bytes(file)
    faults = []
    list(webdataset.samples(webdataset.shards("web", str(tmp_path / "in"), scratch="")[0], faults))
    assert faults in (["damaged_tar"], ["truncated_tar"])


def test_the_first_of_equal_ids_stays_within_and_across_shards(tmp_path):
    tar(
        tmp_path / "in/0.tar",
        pair("a", 0, sha256="s0") + pair("b", 1, sha256="s1") + pair("c", 2, sha256="s0"),
    )
    tar(tmp_path / "in/1.tar", pair("d", 3, sha256="s1") + pair("e", 4, sha256="s4"))
    tar(tmp_path / "in/2.tar", pair("f", 5, sha256="s4") + pair("g", 6))
    report = convert(tmp_path / "in", tmp_path / "w", **{"keep.id": "sha256"})
    assert report["dropped"] == {"no_id": 1, "duplicate_id": 3}
    assert report["samples"] == 7
    found = opened(tmp_path / "w")
    assert found.ids().tolist() == ["web/s0", "web/s1", "web/s4"]
    assert found.captions("caption").tolist() == ["caption 0", "caption 1", "caption 4"]
    assert [found._records[i]["caption"].decode() for i in range(3)] == [
        "caption 0",
        "caption 1",
        "caption 4",
    ]
    assert {("web/s1", "duplicate_id"), ("web/s4", "duplicate_id"), ("web/2/g", "no_id")} <= dropped(
        tmp_path / "w"
    )
    assert (
        len(list(publish.folder(tmp_path / "w", "web").glob("*array_record*"))) == 2
    )  # the third has nothing


def test_a_key_that_comes_twice_in_a_tar(tmp_path):
    tar(tmp_path / "in/0.tar", pair("a", 0) + pair("b", 1) + pair("a", 2))
    report = convert(tmp_path / "in", tmp_path / "w")
    assert report["dropped"] == {"duplicate_id": 1}
    assert opened(tmp_path / "w").captions("caption").tolist() == ["caption 0", "caption 1"]


def test_several_sources_keep_their_names(tmp_path):
    tar(tmp_path / "a/00000.tar", pairs(0, 2))
    tar(tmp_path / "b/00000.tar", pairs(0, 3))
    report = convert(
        None, tmp_path / "w", sources={"beta": str(tmp_path / "b"), "alpha": str(tmp_path / "a")}
    )
    assert {name: part["kept"] for name, part in report["by_source"].items()} == {"alpha": 2, "beta": 3}
    ids = opened(tmp_path / "w").ids()
    assert ids[0] == "alpha/00000/000000000"
    assert ids[2] == "beta/00000/000000000"
    # The ids are what the noise is keyed by.
    captions = opened(tmp_path / "w").captions("caption")
    rows = caption_swap.sources(captions, ratio=0.4, seed=0, ids=ids)
    assert (captions[rows] != captions).sum() == 2


def several(folder):
    for shard in range(4):
        files = pairs(10 * shard, 3) + pair(f"same{shard}", 1, caption="same", sha256="same")
        tar(folder / f"{shard:05d}.tar", [*files, ("bad.jpg", b"bad"), ("bad.txt", b"bad")])
    return folder


def test_two_workers_write_the_bytes_of_one(tmp_path):
    several(tmp_path / "in")
    one = convert(tmp_path / "in", tmp_path / "one")
    assert one["kept"] == 16
    two = convert(tmp_path / "in", tmp_path / "two", workers=2)
    assert one == two
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert len(files_of(tmp_path / "one")) >= 4 + 2 + 2


def test_without_links_files_are_copied(tmp_path, monkeypatch):
    several(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "one")
    monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(OSError("no links here")))
    convert(tmp_path / "in", tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_beam_writes_the_bytes_of_the_local_runner(tmp_path):
    pytest.importorskip("apache_beam")
    several(tmp_path / "in")
    one = convert(tmp_path / "in", tmp_path / "one")
    values = config(tmp_path / "in")
    values.runner = pairs_config.get_config("beam").runner
    stage.execute(values, tmp_path / "beam")
    assert one == json.loads((tmp_path / "beam/report.json").read_text())
    assert files_of(tmp_path / "one") == files_of(tmp_path / "beam")


def test_without_beam_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"nml_jax\[convert\].*the same bytes"):
        beam.apply(print, [1], title="t", progress=False)


def test_what_is_converted_is_not_converted_again(tmp_path, monkeypatch):
    several(tmp_path / "in")
    calls = []
    monkeypatch.setattr(
        part.Job,
        "convert",
        lambda self, shard, convert=part.Job.convert: calls.append(shard.name) or convert(self, shard),
    )
    monkeypatch.setattr(publish, "publish", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "in", tmp_path / "w")
    assert calls == ["00000", "00001", "00002", "00003"]
    monkeypatch.undo()
    calls.clear()
    monkeypatch.setattr(
        part.Job,
        "convert",
        lambda self, shard, convert=part.Job.convert: calls.append(shard.name) or convert(self, shard),
    )
    tar(tmp_path / "in/00002.tar", pairs(100, 1))  # this one came anew
    assert convert(tmp_path / "in", tmp_path / "w")["kept"] == 13
    assert calls == ["00002"]
    calls.clear()
    # Finished: even the shards may be gone, and the number of workers does not matter.
    (tmp_path / "in").rename(tmp_path / "gone")
    assert convert(tmp_path / "in", tmp_path / "w", workers=1)["kept"] == 13
    assert calls == []
    with pytest.raises(UserError, match="was made by another config"):
        convert(tmp_path / "in", tmp_path / "w", **{"keep.min_side": 8})
    assert convert(tmp_path / "gone", tmp_path / "new")["kept"] == 13


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, options):
            self.path = Path(path)

        def write(self, record):
            self.path.write_bytes(record[:10])

        def close(self):  # the words of the real one
            raise RuntimeError("write() failed: No space left on device; writing x; at byte 1048576")

    tar(tmp_path / "in/0.tar", pairs(0, 2))
    monkeypatch.setattr(part.array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(OSError, match="No space left") as full:
        convert(tmp_path / "in", tmp_path / "w")
    assert full.value.errno == errno.ENOSPC  # what nml_jax.main explains
    assert not [p for p in (tmp_path / "w/parts").rglob("*") if p.is_file()]
    monkeypatch.undo()
    assert convert(tmp_path / "in", tmp_path / "w")["kept"] == 2
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == [
        "config.json",
        "dropped.jsonl",
        "report.json",
        "web",
    ]


def killed(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_not_a_hang():
    with pytest.raises(UserError, match="A worker was killed"):
        local.apply(killed, [0, 0, 0], title="t", progress=False, workers=2)


@pytest.mark.slow
def test_kill_9_leaves_whole_files_and_the_same_command_goes_on(tmp_path):
    for shard in range(40):
        tar(tmp_path / f"in/{shard:05d}.tar", pairs(100 * shard, 60))
    command = [
        *(
            sys.executable,
            "-m",
            "nml_jax.main",
            "--config=configs/convert/pairs.py",
            f"--workdir={tmp_path / 'w'}",
        ),
        *(
            f"--config.sources.pairs={tmp_path / 'in'}",
            "--config.name=web",
            "--config.runner.options.workers=2",
        ),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    parts = tmp_path / "w/parts/pairs"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {p.stem for p in parts.glob("*.json")}
    assert 3 <= len(done) < 40
    for name in done:  # whatever says that it is done is whole
        assert len(list(part.read_records(parts / f"{name}.array_record"))) == 60
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert output.returncode == 0, output.stderr
    assert "kept 2400 of 2400 pairs" in output.stdout
    assert len(opened(tmp_path / "w")) == 2400
    assert not list((tmp_path / "w").rglob(f"*{part.ASIDE}"))


def test_configs_that_cannot_work_say_so(tmp_path):
    tar(tmp_path / "in/0.tar", [("k.jpg", image())])
    with pytest.raises(UserError, match="none can be kept: 1 no_caption"):
        convert(tmp_path / "in", tmp_path / "w")
    assert not publish.folder(tmp_path / "w", "web").exists()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="has no .tar files"):
        convert(tmp_path / "nothing", tmp_path / "w2")
    with pytest.raises(UserError, match="is not there"):
        convert(tmp_path / "absent", tmp_path / "w2")
    with pytest.raises(UserError, match="--config.sources.web is empty"):
        convert("", tmp_path / "w2")
    for key, value, words in (
        ("name", "My Set", "small letters"),
        ("name", "glyphs", "embedded"),
        ("name", "parts", "uses itself"),
        ("keep.id", "name", "valid: key, uid, url, sha256"),
        ("keep.min_side", 0, "at least 1"),
        ("keep.fields", ("caption",), "by itself"),
        ("read.name", "zip", "webdataset"),
        ("read.options", {"file": "x"}, "no option file"),
        ("runner.name", "slurm", "local"),
        ("runner.options", {"flags": ()}, "no option flags"),
        ("runner.options", {"workers": -1}, "workers=-1"),
    ):
        with pytest.raises(UserError, match=words):
            convert(tmp_path / "in", tmp_path / "w3", **{key: value})

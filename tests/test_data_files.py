"""Data from files: folders, arrays and parquet; every bad file gives one clear line."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from farfield.data import load, pixels
from farfield.data.parquet import LARGE
from farfield.errors import ArgumentError, DataError

CIFAR = Path(__file__).parents[1].parent / "shared" / "data" / "cifar10_train.parquet"
GENERATOR = np.random.default_rng(0)
PICTURES = GENERATOR.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
UNIT = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 127.5 - 1


def png(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, format="PNG")
    return out.getvalue()


def write_parquet(path: Path, images=None, labels=LABELS, struct=True, column="image", names=None, **options) -> Path:
    encoded = [png(p) for p in PICTURES] if images is None else images
    cells = [{"bytes": e, "path": None} for e in encoded] if struct else encoded
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    columns = {column: pa.array(cells, kind)}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for k, (picture, label) in enumerate(zip(PICTURES, LABELS, strict=True)):
        target = tmp_path / "set" / "abc"[label] / f"{k:02d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png(picture))
    return tmp_path / "set"


def test_every_layout_gives_the_same_digest(tmp_path, folder):
    order = np.argsort(LABELS, kind="stable")
    np.savez(tmp_path / "a.npz", images=PICTURES[order], labels=LABELS[order])
    np.savez_compressed(
        tmp_path / "b.npz", x=PICTURES[order].transpose(0, 3, 1, 2), y=LABELS[order][:, None].astype("u1")
    )
    encoded = [png(PICTURES[k]) for k in order]
    write_parquet(tmp_path / "c.parquet", encoded, LABELS[order], row_group_size=5, names=["a", "b", "c"])
    write_parquet(tmp_path / "d.parquet", encoded, LABELS[order], struct=False, column="img")
    sets = [load(folder), *(load(tmp_path / name) for name in ("a.npz", "b.npz", "c.parquet", "d.parquet"))]
    assert len({data.digest for data in sets}) == 1
    assert torch.equal(sets[0].images, UNIT[torch.from_numpy(order)])
    assert sets[0].classes == sets[3].classes == ("a", "b", "c")
    assert sets[1].classes is None
    assert load(str(folder), split="train", seed=4).digest == load(tmp_path / "c.parquet", seed=4).train.digest


def test_parquet_reads_only_the_rows_asked_for(tmp_path):
    encoded = [png(p) for p in PICTURES]
    encoded[7] = b"not a picture"
    path = write_parquet(tmp_path / "a.parquet", encoded, row_group_size=4)
    assert torch.equal(load(path, limit=7).images, UNIT[:7])
    with pytest.raises(DataError, match=r"a\.parquet row group 1 row 3: not a readable picture"):
        load(path)


def test_parquet_shards_and_patterns(tmp_path):
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", [png(p) for p in PICTURES[:5]], LABELS[:5])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", [png(p) for p in PICTURES[5:]], LABELS[5:])
    data = load(folder)
    assert torch.equal(data.images, UNIT)
    assert data.labels.tolist() == LABELS.tolist()
    write_parquet(folder / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="splits test, train"):
        load(folder)
    assert load(f"{folder}/data/train-*.parquet").digest == data.digest
    (folder / "data" / "train-other.txt").write_text("x")
    with pytest.raises(ArgumentError, match=r"only match \.parquet"):
        load(f"{folder}/data/train-*")
    with pytest.raises(ArgumentError, match="path works too"):
        load(f"{folder}/data/nothing-*.parquet")


def test_large_parquet_sets_hold_out_their_last_rows(tmp_path):
    tiny = [png(np.full((1, 1), k, np.uint8)) for k in range(256)]
    path = write_parquet(tmp_path / "a.parquet", [tiny[k % 251] for k in range(LARGE)], None, row_group_size=10_000)
    held = load(path, split="validation")
    assert len(held) == 5000
    wanted = torch.tensor([k % 251 for k in range(LARGE - 5000, LARGE)]).float() / 127.5 - 1
    assert torch.equal(held.images.flatten(), wanted)
    assert len(load(path, split="validation", holdout=10)) == 10


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"images": [None] * 12}, "no picture bytes"),
        ({"labels": [None] * 12}, "has no label"),
        ({"images": [], "labels": []}, "no rows"),
        ({"labels": [1.5] * 12}, None),
    ],
)
def test_parquet_with_wrong_contents(tmp_path, change, word):
    if word is None:
        table = pa.table({"image": pa.array([png(p) for p in PICTURES]), "label": pa.array(change["labels"])})
        pq.write_table(table, tmp_path / "a.parquet")
        word = "expected integers"
    else:
        write_parquet(tmp_path / "a.parquet", **change)
    with pytest.raises(DataError, match=word):
        load(tmp_path / "a.parquet")


def test_parquet_without_pictures_or_labels(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="expected pictures"):
        load(tmp_path / "a.parquet")
    assert load(write_parquet(tmp_path / "b.parquet", labels=None)).labels is None
    assert load(write_parquet(tmp_path / "c.parquet", labels=[-1] * 12)).labels is None
    with pytest.raises(DataError, match="smallest label is -1"):
        load(write_parquet(tmp_path / "d.parquet", labels=[-1] + [0] * 11))


def one_line(caught: pytest.ExceptionInfo[Exception], path: Path) -> None:
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_files_give_one_line(tmp_path, keep):
    write_parquet(tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", images=PICTURES)
    np.save(tmp_path / "a.npy", PICTURES)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(DataError) as caught:
            load(path)
        one_line(caught, path)


def test_a_damaged_page_gives_one_line(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", compression="zstd")
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(path)
    one_line(caught, path)


class Bomb:
    def __reduce__(self):
        return (Path("executed").touch, ())


def test_pickles_are_never_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.npy").write_bytes(pickle.dumps(Bomb()))
    Path("a.pkl").write_bytes(pickle.dumps(Bomb()))
    Path("a.pt").write_bytes(pickle.dumps(Bomb()))
    np.savez("a.npz", images=np.array([Bomb()], dtype=object))
    np.save("b.npy", np.array([Bomb()], dtype=object))
    for name in ("a.npy", "a.pkl", "a.pt", "a.npz", "b.npy"):
        with pytest.raises(DataError, match="pickles are never read"):
            load(name)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((4, 6, 6, 3)) + 2.0, r"expected \[-1, 1\]"),
        (np.full((4, 6, 6), np.nan), "NaN"),
        (np.full((4, 5), np.inf), "NaN or infinity"),
        (np.zeros((4, 6, 6), dtype=np.int64), "int64"),
        (np.zeros((4, 6), dtype=np.uint8), "uint8"),
        (np.zeros((4, 3, 6, 3), dtype=np.uint8), "both axis 1 and axis 3"),
        (np.zeros((4, 6, 6, 6), dtype=np.uint8), "neither axis 1 nor axis 3"),
        (np.zeros(4), "expected"),
        (np.zeros((0, 4)), "expected"),
    ],
)
def test_arrays_that_are_no_data_set(tmp_path, array, word):
    np.savez(tmp_path / "a.npz", images=array)
    with pytest.raises(DataError, match=word):
        load(tmp_path / "a.npz")


def test_arrays_of_every_layout(tmp_path):
    grey = PICTURES[..., 0]
    np.save(tmp_path / "a.npy", grey)
    assert torch.equal(load(tmp_path / "a.npy").images, UNIT[:, :1])
    np.savez(tmp_path / "b.npz", samples=UNIT.numpy().astype(">f8"))
    assert torch.equal(load(tmp_path / "b.npz").images, UNIT)
    vectors = GENERATOR.normal(size=(5, 4)) * 10
    np.savez(tmp_path / "c.npz", vectors)
    assert torch.equal(load(tmp_path / "c.npz").images, torch.from_numpy(vectors).float())
    with pytest.raises(ArgumentError, match="no size"):
        load(tmp_path / "c.npz", size=2)
    np.savez(tmp_path / "d.npz", images=UNIT.numpy() / 2 + 0.5)
    with pytest.warns(UserWarning, match="2x - 1"):
        load(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", other=grey)
    with pytest.raises(DataError, match="expected samples under"):
        load(tmp_path / "e.npz")
    np.savez(tmp_path / "f.npz", images=grey, labels=LABELS[:5])
    with pytest.raises(DataError, match="labels"):
        load(tmp_path / "f.npz")
    (tmp_path / "g.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="not a kind of file"):
        load(tmp_path / "g.zip")


def test_folder_of_mixed_sizes_needs_a_size(folder):
    (folder / "a" / "wide.png").write_bytes(png(np.zeros((4, 9, 3), np.uint8)))
    with pytest.raises(DataError, match=r"a/wide\.png is 4x9 but a/00\.png is 6x6; give size="):
        load(folder)
    data = load(folder, size=2)
    assert data.images.shape == (13, 3, 2, 2)
    assert torch.equal(data.images[4], torch.full((3, 2, 2), -1.0))
    assert torch.allclose(data.images[0], torch.nn.functional.avg_pool2d(UNIT[0], 3), atol=1e-6)


def test_folder_labels(tmp_path, folder):
    assert load(folder).classes == ("a", "b", "c")
    assert load(folder / "a").labels is None
    (folder / "top.png").write_bytes(png(PICTURES[0]))
    assert load(folder).labels is None
    table = [[f"{'abc'[k % 3]}/{k:02d}.png", 9 - k % 3] for k in range(12)]
    (folder / "dataset.json").write_text(json.dumps({"labels": table}))
    with pytest.raises(DataError, match=r"1 pictures have no label there, the first is top\.png"):
        load(folder)
    (folder / "top.png").unlink()
    assert load(folder).labels.tolist() == [9] * 4 + [8] * 4 + [7] * 4
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="no readable table"):
        load(folder)


def test_bad_folders(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        load(tmp_path / "empty")
    bad = folder / "b" / "text.png"
    for content in (b"just text", b"", png(PICTURES[0])[:60], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n"):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"b/text\.png") as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_decompression_bombs_are_refused(folder, monkeypatch):
    monkeypatch.setattr(pixels, "MAX_PIXELS", 35)
    with pytest.raises(DataError, match="6x6 pixels; at most 35"):
        load(folder)


def test_picture_modes(tmp_path):
    grey = Image.fromarray(PICTURES[0, ..., 0])
    grey.save(tmp_path / "a.png")
    Image.fromarray(PICTURES[1, ..., 0].astype(np.uint16) * 257).save(tmp_path / "b.png")
    assert torch.equal(load(tmp_path).images, UNIT[:2, :1])
    clear = Image.fromarray(np.dstack((PICTURES[2], np.zeros((6, 6), np.uint8))))
    clear.save(tmp_path / "c.png")
    Image.fromarray(PICTURES[3]).quantize(256).save(tmp_path / "d.png")
    Image.fromarray(PICTURES[4]).save(tmp_path / "e.bmp")
    Image.fromarray(PICTURES[5]).save(tmp_path / "f.webp", lossless=True)
    data = load(tmp_path)  # grey and colour together become colour
    assert data.images.shape == (6, 3, 6, 6)
    assert torch.equal(data.images[0], UNIT[0, :1].expand(3, 6, 6))
    assert torch.equal(data.images[2], torch.ones(3, 6, 6))
    assert torch.equal(data.images[4:], UNIT[4:6])


@pytest.mark.skipif(not CIFAR.exists(), reason="shared/data/cifar10_train.parquet is not beside the repository")
def test_cifar10_parquet():
    data = load(CIFAR, limit=1000)
    assert data.images.shape == (1000, 3, 32, 32)
    assert data.labels.unique().tolist() == list(range(10))
    assert 0.4 < float(data.images.std()) < 0.6
    small = load(CIFAR, limit=100, size=16)
    assert torch.allclose(small.images, torch.nn.functional.avg_pool2d(data.images[:100], 2), atol=1e-6)

"""Folders of pictures: numbered alike on every device, upright, in the model's channels and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from device_agent.training.data import BatchOrder, DeviceData, load_dataset
from spliteasy.errors import DataError, JobError
from spliteasy.graph.document import DtypeName
from spliteasy.job.io_schema import SampleSpec, Signature
from spliteasy.job.recipe import check_recipe
from spliteasy.job.spec import DataSpec
from tests.device.test_data import spec_with
from tests.drawn import key_of

images = pytest.importorskip("PIL.Image")


def pictures(
    *shape: int, dtype: DtypeName = "float32", classes: int = 3, target: DtypeName = "int64"
) -> Signature:
    scores = (classes,) if target == "int64" else ()
    return Signature(
        inputs=(SampleSpec(name="picture", dtype=dtype, shape=shape),),
        targets=(SampleSpec(name="label", dtype=target, shape=()),),
        outputs=(SampleSpec(name="scores", dtype="float32", shape=scores),),
    )


GREY, COLOUR = pictures(1, 2, 2), pictures(3, 2, 2)


def recipe(**settings: Any) -> DataSpec:
    return DataSpec.model_validate({"kind": "images", "classes": ("cat", "ant", "bee"), **settings})


def save(path: Path, image: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def flat(grey: int, size: tuple[int, int] = (2, 2)) -> Any:
    return images.new("L", size, grey)


def loaded(folder: Path, signature: Signature = GREY, how: DataSpec | None = None) -> DeviceData:
    return load_dataset(str(folder), "phone-1", signature, recipe=how)


def only(folder: Path, signature: Signature, how: DataSpec | None = None) -> Tensor:
    data = loaded(folder, signature, how or recipe())
    assert len(data.train) == 1  # type: ignore[arg-type]
    picture: Tensor = data.train[0][0]
    return picture


# Classes ------------------------------------------------------------------------------------------


def test_the_job_numbers_the_classes_whatever_a_device_has(tmp_path: Path) -> None:
    save(tmp_path / "train/bee/0.png", flat(10))
    save(tmp_path / "train/cat/0.png", flat(20))
    save(tmp_path / "test/ant/0.png", flat(30))
    data = loaded(tmp_path, how=recipe())
    assert [(round(float(x[0, 0, 0]) * 255), int(y)) for x, y in data.train] == [(10, 2), (20, 0)]  # type: ignore[attr-defined]
    assert data.test is not None
    assert int(data.test[0][1]) == 1
    assert "0 cat, 1 ant, 2 bee" in data.notes[0]


def test_a_folder_numbers_them_only_where_it_has_all(tmp_path: Path) -> None:
    for number, name in enumerate(("ant", "bee", "cat")):
        save(tmp_path / name / "0.png", flat(number))
        with_all = number == 2
        if not with_all:
            with pytest.raises(DataError, match=rf"has {number + 1} classes.*tells 3 apart.*\[data\]"):
                loaded(tmp_path)
    data = loaded(tmp_path)
    assert [int(y) for _, y in data.train] == [0, 1, 2]  # type: ignore[attr-defined]
    assert "0 ant, 1 bee, 2 cat; name the classes in the job file" in data.notes[0]


@pytest.mark.parametrize("extra", [".thumbnails", "__MACOSX", "@eaDir"])
def test_what_systems_leave_beside_pictures_is_no_class(tmp_path: Path, extra: str) -> None:
    for name in ("ant", "bee", "cat"):
        save(tmp_path / name / "deep/0.png", flat(1))
    save(tmp_path / extra / "0.png", flat(1))
    (tmp_path / "ant" / "._0.png").write_bytes(b"a resource fork")
    (tmp_path / "ant" / "0.heic").write_bytes(b"no format that is read")
    for how in (None, recipe()):
        data = loaded(tmp_path, how=how)
        assert len(data.train) == 3  # type: ignore[arg-type]
        assert any("1 .heic" in note for note in data.notes)


def test_a_class_that_nobody_names_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "Cat/0.png", flat(1))
    with pytest.raises(DataError, match=r"has class 'Cat', which \[data\] classes.*did you mean 'cat'"):
        loaded(tmp_path, how=recipe())
    for name in ("ant", "bee", "cat"):
        save(tmp_path / "x/train" / name / "0.png", flat(1))
    save(tmp_path / "x/test/dog/0.png", flat(1))
    with pytest.raises(DataError, match="has class 'dog', which the training images don't have"):
        loaded(tmp_path / "x")


def test_yes_or_no_is_a_number_with_fractions(tmp_path: Path) -> None:
    save(tmp_path / "no/0.png", flat(1))
    save(tmp_path / "yes/0.png", flat(1))
    asked = pictures(1, 2, 2, target="float32")
    data = loaded(tmp_path, asked, recipe(classes=("no", "yes")))
    spec = spec_with(loss={"name": "bce_with_logits"})
    _, targets = BatchOrder(data.train, spec, asked, device="phone-1", key=key_of(), labels=key_of()).batch(1)
    assert sorted(targets[0].tolist()) == [0.0, 1.0]


# Pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_not_cut_off(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 65535], [10280, 32896]], np.uint16)
    save(tmp_path / f"cat/0.{suffix}", images.fromarray(values))
    expected = torch.tensor([[0, 255], [40, 128]]) / 255
    assert torch.allclose(only(tmp_path, GREY)[0], expected)
    assert torch.allclose(only(tmp_path, COLOUR), expected.expand(3, 2, 2))


def test_a_turned_photo_stands_upright(tmp_path: Path) -> None:
    image = flat(0)
    image.putpixel((0, 0), 255)
    exif = images.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    save(tmp_path / "cat/0.png", image, exif=exif)
    assert torch.equal(only(tmp_path, GREY)[0], torch.tensor([[0.0, 1.0], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (images.new("RGBA", (2, 2), (200, 0, 0, 0)), (255, 255, 255)),
        (images.new("RGBA", (2, 2), (200, 0, 0, 255)), (200, 0, 0)),
        (images.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (images.new("RGB", (2, 2), (1, 2, 3)).convert("P", palette=1), None),
        (images.new("1", (2, 2), 1), (255, 255, 255)),
        (flat(7), (7, 7, 7)),
    ],
    ids=["transparent", "opaque", "grey transparent", "palette", "black and white", "grey"],
)
def test_every_kind_of_pixel_becomes_the_models(
    tmp_path: Path, image: Any, colour: tuple[int, ...] | None
) -> None:
    save(tmp_path / "cat/0.png", image)
    expected = colour or image.convert("RGB").getpixel((0, 0))
    assert (only(tmp_path, COLOUR)[:, 1, 1] * 255).round().tolist() == list(expected)
    assert only(tmp_path, GREY).shape == (1, 2, 2)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    save(tmp_path / "cat/0.tif", images.new("CMYK", (2, 2), (0, 255, 255, 0)))
    assert (only(tmp_path, COLOUR)[:, 0, 0] * 255).round().tolist() == [255, 0, 0]


def half_and_half() -> Any:
    """8 × 4 pixels: a black middle between white sides."""
    image = flat(255, (8, 4))
    image.paste(0, (1, 0, 7, 4))
    return image


@pytest.mark.parametrize(
    ("resize", "rows"), [("crop", [[0.0, 0.0], [0.0, 0.0]]), ("stretch", None), ("pad", None)]
)
def test_the_job_says_how_a_size_is_made_to_fit(
    tmp_path: Path, resize: str, rows: list[list[float]] | None
) -> None:
    save(tmp_path / "cat/0.png", half_and_half())
    with pytest.raises(DataError, match=r'8 × 4 pixels, the model takes 2 × 2 .*resize = "crop"'):
        only(tmp_path, GREY)
    picture = only(tmp_path, GREY, recipe(resize=resize))
    assert picture.shape == (1, 2, 2)
    if resize == "crop":
        assert torch.equal(picture[0].round(), torch.tensor(rows))
    else:
        assert 0 < float(picture.mean()) < 1


def test_values_are_scaled_as_the_job_says(tmp_path: Path) -> None:
    save(tmp_path / "cat/0.png", images.new("RGB", (2, 2), (51, 102, 204)))
    scaled = only(tmp_path, COLOUR, recipe(mean=(0.2, 0.4, 0.8), std=(0.5,)))
    assert torch.allclose(scaled, torch.zeros(3, 2, 2), atol=1e-6)
    as_bytes = only(tmp_path, pictures(3, 2, 2, dtype="uint8"))
    assert as_bytes.dtype == torch.uint8
    assert as_bytes[:, 0, 0].tolist() == [51, 102, 204]


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        loaded(tmp_path, how=recipe())
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0.png can't be read as an image"):
        only(tmp_path, GREY)
    save(tmp_path / "cat/0.tif", images.fromarray(np.full((2, 2), 0.5, np.float32)))
    (tmp_path / "cat/0.png").unlink()
    with pytest.raises(DataError, match=r"0.tif holds numbers with fractions"):
        only(tmp_path, GREY)


# The recipe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "signature", "says"),
    [
        ({"classes": ("a", "b")}, GREY, r"data\.classes names 2 classes, and the model tells 3 apart"),
        ({"mean": (0.1, 0.2, 0.3)}, GREY, r"data\.mean has 3 numbers, and a picture 1 channels"),
        ({"std": (0.1,)}, pictures(1, 2, 2, dtype="uint8"), r"data\.std: the model's input is uint8"),
        ({}, pictures(5), r"data\.kind: the job's input is float32\[5\], which images don't fit"),
    ],
)
def test_a_recipe_that_does_not_fit_the_model_is_refused(
    settings: dict[str, Any], signature: Signature, says: str
) -> None:
    with pytest.raises(JobError, match=says):
        check_recipe(recipe(**settings), signature)
    check_recipe(recipe(), GREY)

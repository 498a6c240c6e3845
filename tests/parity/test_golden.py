"""MLX beside the golden files; needs no PyTorch."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from m3mlx.errors import M3Error
from m3mlx.parity.cases import TINY
from m3mlx.parity.check import mlx_result
from m3mlx.parity.golden import FOLDER, read_golden, write_golden
from m3mlx.parity.measure import STAGES


# In bfloat16 the live comparison says the same.
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TINY)
def test_mlx_computes_what_is_recorded(name, dtype, device, agree):
    case = TINY[name]
    origin, theirs = read_golden(case)
    agree(mlx_result(case, theirs, f"golden {origin.kind}", device=device, dtype=dtype))


@pytest.mark.parametrize("name", TINY)
def test_a_golden_file_has_every_stage_and_names_its_origin(name):
    origin, arrays = read_golden(TINY[name])
    assert {key.split("/")[0] for key in arrays} == set(STAGES)
    assert all(asdict(origin).values())
    assert origin.kind in ("cpu", "cuda") and origin.precision == "float32"
    assert (origin.driver == "none") == (origin.kind == "cpu")


def test_golden_files_are_small_and_belong_to_a_case():
    files = list(FOLDER.glob("*.npz"))
    assert {file.stem for file in files} == set(TINY)
    assert sum(file.stat().st_size for file in files) < 2_500_000
    assert (FOLDER.parents[2] / "tests" / "parity" / "golden").resolve() == FOLDER.resolve()


def test_a_golden_file_comes_back_as_it_was_written(tmp_path):
    case = TINY["llama"]
    origin, arrays = read_golden(case)
    write_golden(tmp_path / "llama.npz", origin, arrays)
    origin_again, again = read_golden(case, tmp_path)
    assert origin_again == origin and again.keys() == arrays.keys()
    assert all(np.array_equal(again[key], array) for key, array in arrays.items())


@pytest.mark.parametrize("damage", ["missing", "cut", "noise", "no header", "array of objects"])
def test_a_broken_golden_file_is_an_error_that_says_what_to_do(tmp_path, damage):
    path = tmp_path / "llama.npz"
    whole = (FOLDER / "llama.npz").read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "noise":
        path.write_bytes(whole[:1000] + bytes(1000) + whole[2000:])
    elif damage == "no header":
        np.savez(path, embeddings=np.zeros(3))
    elif damage == "array of objects":
        np.savez(path, origin=np.array([{}], object))
    with pytest.raises(M3Error, match=r"llama\.npz is no golden file .*tools/parity\.py record"):
        read_golden(TINY["llama"], tmp_path)


def test_a_golden_file_of_another_case_is_refused(tmp_path):
    case = TINY["llama"]
    write_golden(tmp_path / "llama.npz", *read_golden(case))
    with pytest.raises(M3Error, match="recorded for another model or text"):
        read_golden(replace(case, key_scale=1.3), tmp_path)


def test_the_header_is_plain_json():
    with np.load(FOLDER / "llama.npz") as file:
        assert json.loads(file["origin"].tobytes())["torch"]

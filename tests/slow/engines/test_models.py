"""What docs/models.md shows: each caller gets its row, which is a view of the output of its whole batch."""

import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ...tools import in_threads, until
from .components import component
from .pages import module

N = 16
PIXELS = 64


def _in_one_batch(function: Any, items: list[Any]) -> list[Any]:
    """Return the results of callers in threads that share a batch."""
    function.batch_size, function.timeout = len(items), None
    with function:
        results = in_threads(function, items)
    assert function.stats.sizes == {len(items): 1}
    errors = [result for result in results if isinstance(result, Exception)]
    assert not errors
    return results


def _are_rows_of_one_array(rows: list[Any]) -> None:
    """Check that nothing was copied; then that a row keeps the whole output alive, and a copy of it does not."""
    np = component("numpy")
    output = rows[0].base
    assert output.shape == (len(rows), *rows[0].shape)
    assert all(row.base is output for row in rows)
    assert sorted(row.ctypes.data for row in rows) == [row.ctypes.data for row in output]  # in order of arrival
    assert np.shares_memory(rows[0], output)
    assert not np.shares_memory(rows[0], rows[1])

    whole = weakref.ref(output)
    kept = rows[1]
    del output
    rows.clear()
    assert whole() is not None
    alone = kept.copy()
    expected = kept.tolist()
    del kept
    until(lambda: whole() is None)
    assert alone.tolist() == expected


def _are_rows_of_one_tensor(rows: list[Any]) -> None:
    """The same for tensors, which share a storage."""
    reductions = component("torch.multiprocessing.reductions")
    storage = rows[0].untyped_storage()
    row_bytes = rows[0].numel() * rows[0].element_size()
    assert storage.nbytes() == len(rows) * row_bytes
    first = storage.data_ptr()
    assert sorted(row.data_ptr() for row in rows) == [first + row_bytes * position for position in range(len(rows))]

    whole = reductions.StorageWeakRef(storage)
    kept = rows[1]
    del storage
    rows.clear()
    assert not whole.expired()
    alone = kept.clone()
    expected = kept.tolist()
    del kept
    until(whole.expired)
    assert alone.untyped_storage().nbytes() == row_bytes
    assert alone.tolist() == expected


def _images() -> list[Any]:
    np = component("numpy")
    images: list[Any] = list(np.random.default_rng(1).normal(size=(N, PIXELS)).astype(np.float32))
    return images


def test_numpy_rows_are_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np = component("numpy")
    recipe = module("models.md", "numpy", "with_numpy", tmp_path, monkeypatch)
    images = _images()
    rows = _in_one_batch(recipe.scores, images)
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_allclose(row, image @ recipe.weights, rtol=1e-5)
    del row
    _are_rows_of_one_array(rows)


def test_scikit_learn_rows_are_views_and_numbers_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np = component("numpy")
    component("sklearn")
    recipe = module("models.md", "scikit-learn", "with_scikit_learn", tmp_path, monkeypatch)
    images = list(recipe.digits.data[:N])
    numbers = _in_one_batch(recipe.digit, images)
    assert numbers == recipe.forest.predict(recipe.digits.data[:N]).tolist()
    assert all(number.base is None for number in numbers)
    rows = _in_one_batch(recipe.probabilities, images)
    assert np.array_equal(np.stack(rows), recipe.forest.predict_proba(recipe.digits.data[:N]))
    _are_rows_of_one_array(rows)


def test_pytorch_rows_are_views_without_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = component("torch")
    recipe = module("models.md", "PyTorch", "with_pytorch", tmp_path, monkeypatch)
    images = [torch.from_numpy(image) for image in _images()]
    rows = _in_one_batch(recipe.scores, images)
    with torch.no_grad():
        for image, row in zip(images, rows, strict=True):
            torch.testing.assert_close(row, recipe.model(image))
    assert all(row.is_inference() and not row.requires_grad and row._base is None for row in rows)
    with pytest.raises(RuntimeError, match="inference tensor"):
        rows[0].add_(1)  # as the page says
    rows[0].clone().add_(1).requires_grad_()
    del row
    _are_rows_of_one_tensor(rows)


def test_pytorch_modes_around_a_call_do_not_reach_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = component("torch")
    recipe = module("models.md", "PyTorch", "with_pytorch_modes", tmp_path, monkeypatch)
    seen: list[tuple[bool, bool, str]] = []

    def forward(images: Any) -> Any:
        device = torch.get_default_device().type
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), device))
        return images

    monkeypatch.setattr(recipe, "model", forward)
    plain = recipe.batched(batch_size=1)(recipe.scores.__wrapped__.__wrapped__)  # without inference_mode
    image = torch.zeros(PIXELS)
    with recipe.scores, plain, torch.no_grad(), torch.autocast("cpu"), torch.device("meta"):
        recipe.scores(image)
        plain(image)
    assert seen == [(False, False, "cpu"), (True, False, "cpu")]


def test_onnxruntime_rows_are_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np = component("numpy")
    onnx = component("onnx")
    component("onnxruntime")
    monkeypatch.chdir(tmp_path)
    weights = np.random.default_rng(2).normal(size=(PIXELS, 10)).astype(np.float32)
    model = component("onnx.parser").parse_model(
        """<ir_version: 9, opset_import: ["": 17]>
        linear (float[N, 64] images, float[64, 10] weights) => (float[N, 10] scores) {
            scores = MatMul(images, weights)
        }"""
    )
    del model.graph.input[1]  # it stands in the model
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "model.onnx")
    recipe = module("models.md", "ONNX Runtime", "with_onnxruntime", tmp_path, monkeypatch)
    images = _images()
    rows = _in_one_batch(recipe.scores, images)
    np.testing.assert_allclose(np.stack(rows), np.stack(images) @ weights, rtol=1e-4, atol=1e-5)
    _are_rows_of_one_array(rows)


def test_model_with_two_outputs_gives_each_caller_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    component("numpy")
    recipe = module("models.md", "Two outputs", "with_two_outputs", tmp_path, monkeypatch)
    images = _images()[:2]  # with two, a tuple of two arrays would pass for results
    results = _in_one_batch(recipe.brightest, images)
    assert results == [(image.argmax(), image.max()) for image in images]


def test_each_thread_has_a_tokenizer_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    component("tokenizers")
    page = module("models.md", "A token budget", "token_budget", tmp_path, monkeypatch)
    texts = ["one more word", "one word", "nothing known here at all"] * 5
    with page.known:
        assert in_threads(lambda text: page.known(page.tokens_of(text)), texts) == [2 / 3, 1.0, 0.0] * 5


@pytest.fixture
def padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe that pads."""
    component("torch")
    return module("models.md", "Padding, and two models", "with_padding", tmp_path, monkeypatch)


def test_texts_of_similar_length_for_the_same_model_share_a_batch(
    padding: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = component("torch")
    shapes: list[list[int]] = []
    pad_sequence = padding.pad_sequence

    def pad_and_note(texts: list[Any], *, batch_first: bool) -> Any:
        shapes.append([len(text) for text in texts])
        return pad_sequence(texts, batch_first=batch_first)

    monkeypatch.setattr(padding, "pad_sequence", pad_and_note)
    texts = [torch.arange(1, length + 1) for length in range(1, 48)]
    padding.embed.timeout = None
    asked = [(text, model) for text in texts for model in ("small", "large")]
    with padding.embed as embed:  # it closes, and so runs what waits
        futures = [embed.submit(text, model=model) for text, model in asked]
    for (text, model), future in zip(asked, futures, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(future.result(), padding.models[model](text).mean(dim=0))
    buckets = [list(range(1, 16)), list(range(16, 32)), list(range(32, 48))]
    assert sorted(shapes) == sorted(2 * buckets)

"""Building and calling a model the wrong way: one sentence with the given and the expected value.

Shape checks of the test run are off here: they would raise their own errors first.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import jaxtyping
import pytest
import torch
from torch import Tensor

from associative_transformer.models import MODELS, ModelConfig, build_model
from associative_transformer.models.coordination import SlotsConfig
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.tiny import QUESTION_DIM, TINY

ASKED: dict[str, ModelConfig] = {
    kind: replace(config, question_dim=QUESTION_DIM)
    for kind, config in TINY.items()
    if hasattr(config, "question_dim")
}

WRONG_IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "one channel": lambda x: x[:, :1],
    "four channels": lambda x: torch.cat([x, x[:, :1]], dim=1),
    "unbatched": lambda x: x[0],
    "two dimensions": lambda x: x[0, 0],
    "five dimensions": lambda x: x[None],
    "smaller": lambda x: x[..., :-1, :-1],
    "not square": lambda x: x[..., :-1],
    "larger": lambda x: torch.cat([x, x], dim=-1),
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "empty batch": lambda x: x[:0],
    "integers": lambda x: (255 * x).byte(),
    "booleans": lambda x: x > 0.5,
}
WRONG_QUESTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "narrow": lambda q: q[:, :-1],
    "wide": lambda q: torch.cat([q, q], dim=1),
    "unbatched": lambda q: q[0],
    "three dimensions": lambda q: q[None],
    "integers": lambda q: q.long(),
    "empty": lambda q: q[:0],
}
WRONG_TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "two dimensions": lambda u: u[0],
    "four dimensions": lambda u: u[None],
    "narrow": lambda u: u[..., :-1],
    "wide": lambda u: torch.cat([u, u], dim=-1),
    "empty batch": lambda u: u[:0],
    "no tokens": lambda u: u[:, :0],
    "integers": lambda u: u.long(),
}
WRONG_MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "one image": lambda mask: mask[0],
    "another batch": lambda mask: mask[:1],
    "fewer tokens": lambda mask: mask[:, :-1],
    "transposed": lambda mask: mask.T,
    "numbers": lambda mask: mask.float(),
    "integers": lambda mask: mask.long(),
}

every_model = pytest.mark.parametrize("name", TINY)


@pytest.fixture(autouse=True)
def without_shape_checks() -> Iterator[None]:
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def inputs_for(config: ModelConfig) -> list[Tensor]:
    inputs = [torch.rand(4, config.num_channels, config.image_size, config.image_size)]
    if question_dim := getattr(config, "question_dim", 0):
        inputs.append(torch.rand(4, question_dim))
    return inputs


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and ". " not in text
    return text


@every_model
@pytest.mark.parametrize("mistake", WRONG_IMAGES)
def test_wrong_images_are_an_error_with_both_shapes(name: str, mistake: str) -> None:
    config = TINY[name]
    model, (images,) = build_model(config), inputs_for(config)
    wrong = WRONG_IMAGES[mistake](images)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        text = error_of(lambda: model(wrong))
        assert str(tuple(wrong.shape)) in text
        assert f"(B, {config.num_channels}, {config.image_size}, {config.image_size})" in text
    for key, value in model.state_dict().items():  # no memory moved, no statistics changed
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("mistake", WRONG_QUESTIONS)
def test_wrong_questions_are_an_error_with_both_shapes(name: str, mistake: str) -> None:
    model, (images, questions) = build_model(ASKED[name]), inputs_for(ASKED[name])
    wrong = WRONG_QUESTIONS[mistake](questions)
    text = error_of(lambda: model(images, wrong))
    assert str(tuple(wrong.shape)) in text and f"(B, {QUESTION_DIM})" in text


@pytest.mark.parametrize("name", ASKED)
def test_a_missing_question_and_another_number_of_questions_are_errors(name: str) -> None:
    model, (images, questions) = build_model(ASKED[name]), inputs_for(ASKED[name])
    assert f"(B, {QUESTION_DIM})" in error_of(lambda: model(images))
    assert "3 questions for 4 images" in error_of(lambda: model(images, questions[:3]))


@every_model
def test_an_unexpected_question_is_an_error(name: str) -> None:
    model, (images,) = build_model(TINY[name]), inputs_for(TINY[name])
    assert "no questions, but got some of shape (4, 7)" in error_of(
        lambda: model(images, torch.rand(4, 7))
    )


@pytest.mark.parametrize("mistake", WRONG_TOKENS)
@pytest.mark.parametrize("training", [True, False])
def test_wrong_tokens_are_an_error_with_both_shapes(mistake: str, training: bool) -> None:
    workspace = GlobalWorkspace(6, WorkspaceConfig(num_priors=5, prior_dim=4, num_heads=3))
    workspace.train(training)
    wrong, before = WRONG_TOKENS[mistake](torch.rand(2, 4, 6)), workspace.priors.clone()
    text = error_of(lambda: workspace(wrong))
    assert str(tuple(wrong.shape)) in text and "(B, N, 6)" in text
    assert torch.equal(workspace.priors, before)


@pytest.mark.parametrize("mistake", WRONG_MASKS)
@pytest.mark.parametrize("method", ["forward", "select"])
@pytest.mark.parametrize("scope", ["batch", "image"])
def test_a_wrong_mask_is_an_error_with_both_shapes(scope: str, mistake: str, method: str) -> None:
    image = WorkspaceConfig(scope="image", image=ImageMemoryConfig(read_head_dim=3))
    workspace = GlobalWorkspace(6, image if scope == "image" else WorkspaceConfig())
    wrong = WRONG_MASKS[mistake](torch.zeros(2, 4, dtype=torch.bool))
    text = error_of(lambda: getattr(workspace, method)(torch.rand(2, 4, 6), wrong))
    assert f"{wrong.dtype} {tuple(wrong.shape)}" in text and "shape (2, 4)" in text


@pytest.mark.parametrize("config", [*MODELS, SlotsConfig, WorkspaceConfig])
@pytest.mark.parametrize("value", [2.5, 4.0, math.nan, math.inf])
def test_a_count_or_width_that_is_not_an_integer_is_an_error(config: type, value: float) -> None:
    names = [item.name for item in fields(config) if item.type is int]
    assert len(names) >= 3
    for name in names:
        text = error_of(lambda name=name: config(**{name: value}))
        assert text == f"{name} must be an integer, not {value}"


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [("scope", "images", "batch or image"), ("competition", "tokens", "none or priors")],
)
def test_an_unknown_choice_is_an_error_with_those_there_are(
    field: str, value: str, choices: str
) -> None:
    text = error_of(lambda: WorkspaceConfig(**{field: value}))
    assert text == f"{field} must be {choices}, not {value}"


@pytest.mark.parametrize("value", [2.5, math.nan])
def test_a_width_of_the_read_that_is_not_an_integer_is_an_error(value: float) -> None:
    text = error_of(lambda: ImageMemoryConfig(read_head_dim=value))
    assert text == f"read_head_dim must be an integer, not {value}"


def test_the_error_of_an_unbatched_image_says_how_to_fix_it() -> None:
    model = build_model(TINY["ait"])
    text = error_of(lambda: model(torch.rand(3, 8, 8)))
    assert text == "images must have shape (B, 3, 8, 8), not (3, 8, 8): pass images[None]"

"""What AiT and ViT have in common: heads, the norm behind the feed-forward, and their sizes.

Also the block of an AiT whose images have memories of their own, and one that reads nothing.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from associative_transformer.balance import collect_balance_loss
from associative_transformer.models import build_model, load_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.heads import (
    FirstTokenHead,
    FlattenHead,
    MeanHead,
    build_head,
)
from associative_transformer.models.vit import ViTConfig
from associative_transformer.training.parameters import parameter_groups
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.tiny import IMAGE_MEMORY, MEMORY, QUESTION_DIM, VARIANTS, count_parameters, tiny
from twins import naive

WIDTH, CLASSES, TOKENS = 24, 5, 16  # of tiny models

both_models = pytest.mark.parametrize("config", [AiTConfig, ViTConfig], ids=["ait", "vit"])


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 8)


def tokens_before_the_head(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the head gets, and the logits."""
    captured: list[Tensor] = []
    handle = model.get_submodule("head").register_forward_pre_hook(
        lambda _, arguments: captured.append(arguments[0])
    )
    logits = model(*inputs).logits
    handle.remove()
    return captured[0], logits


# --- heads ---


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("flatten", FlattenHead),
        ("mean", MeanHead),
        ("cls", FirstTokenHead),
        ("question", FirstTokenHead),
    ],
)
def test_every_kind_of_head_is_built(kind: Any, expected: type[nn.Module]) -> None:  # noqa: ANN401
    assert type(build_head(kind, TOKENS, WIDTH, CLASSES)) is expected


@pytest.mark.parametrize("kind", ["mean", "cls"])
def test_a_head_equals_the_loops(kind: Any) -> None:  # noqa: ANN401
    head = build_head(kind, 3, 4, 2).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    rows = []
    for tokens in x:
        normalized = naive.layer_norm(tokens, head.norm.weight, head.norm.bias, 1e-5)
        vector = normalized.sum(dim=0) / 3 if kind == "mean" else normalized[0]
        rows.append(naive.linear(vector[None], head.to_logits.weight, head.to_logits.bias)[0])
    expected, logits = torch.stack(rows), head(x)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    cotangent, inputs = torch.randn_like(expected), (x, *head.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(logits, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@both_models
def test_the_mean_head_does_not_depend_on_the_order_of_the_tokens(config: Any) -> None:  # noqa: ANN401
    model = build_model(tiny(config, head="mean")).eval()
    x, logits = tokens_before_the_head(model, images())
    assert x.shape == (3, TOKENS, WIDTH)
    torch.testing.assert_close(model.get_submodule("head")(x.flip(1)), logits)


@both_models
def test_the_class_token_comes_first_and_is_what_the_head_reads(config: Any) -> None:  # noqa: ANN401
    model = build_model(tiny(config, head="cls", pos="learned")).eval()
    names = {name: value.shape for name, value in model.named_parameters()}
    assert names["embed.class_token"] == (1, WIDTH)
    assert names["embed.positions"] == (1 + TOKENS, WIDTH)
    x, logits = tokens_before_the_head(model, images())
    assert x.shape == (3, 1 + TOKENS, WIDTH)
    other = torch.cat([x[:, :1], torch.randn(3, TOKENS, WIDTH)], dim=1)
    assert torch.equal(model.get_submodule("head")(other), logits)
    assert not torch.allclose(model.get_submodule("head")(x + 1e-1 * torch.randn_like(x)), logits)


@both_models
def test_the_question_head_reads_the_question_and_adds_no_token(config: Any) -> None:  # noqa: ANN401
    model = build_model(tiny(config, head="question", question_dim=QUESTION_DIM)).eval()
    assert "embed.class_token" not in dict(model.named_parameters())
    questions = torch.randn(3, QUESTION_DIM)
    embedded = model.embed(images(), questions)
    assert embedded.shape == (3, 1 + TOKENS, WIDTH)
    torch.testing.assert_close(embedded[:, 0], model.embed.question(questions))
    x, logits = tokens_before_the_head(model, images(), questions)
    other = torch.cat([x[:, :1], torch.randn(3, TOKENS, WIDTH)], dim=1)
    assert torch.equal(model.get_submodule("head")(other), logits)


@both_models
def test_a_question_head_without_questions_is_refused(config: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match='head="question" needs questions: set question_dim'):
        config(head="question")


@both_models
@pytest.mark.parametrize("pos", ["none", "learned"])
def test_heads_differ_in_exactly_these_parameters(config: Any, pos: str) -> None:  # noqa: ANN401
    count = {
        (head, asked): count_parameters(
            tiny(config, head=head, pos=pos, question_dim=QUESTION_DIM * asked)
        )
        for head, asked in (
            ("flatten", 0),
            ("mean", 0),
            ("cls", 0),
            ("flatten", 1),
            ("question", 1),
        )
    }
    linear = (WIDTH + 1) * CLASSES + 2 * WIDTH
    flat = {n: (n * WIDTH + 1) * CLASSES + 2 * n * WIDTH for n in (TOKENS, TOKENS + 1)}
    token = WIDTH * (2 if pos == "learned" else 1)  # and its position
    assert count["flatten", 0] - count["mean", 0] == flat[TOKENS] - linear
    assert count["cls", 0] - count["mean", 0] == token
    assert count["flatten", 1] - count["question", 1] == flat[TOKENS + 1] - linear


# --- blocks ---


def shaken(config: Any) -> nn.Module:  # noqa: ANN401
    """Return a model whose norms are not the identity."""
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@both_models
@pytest.mark.parametrize("use_output_norm", [True, False])
def test_the_norm_behind_the_feed_forward_can_be_turned_on_and_off(
    config: Any,  # noqa: ANN401
    use_output_norm: bool,
) -> None:
    assert config().use_output_norm == (config is AiTConfig)
    model = shaken(tiny(config, use_output_norm=use_output_norm)).eval()
    block, x = model.get_submodule("blocks.0"), torch.randn(2, TOKENS, WIDTH)
    names = {name for name, _ in block.named_parameters() if name.startswith("norm3")}
    assert names == ({"norm3.weight", "norm3.bias"} if use_output_norm else set())
    attended = x + block.attention(block.norm1(x))
    u = block.feed_forward(block.norm2(attended))
    if use_output_norm:
        u = nn.functional.layer_norm(u, [WIDTH], block.norm3.weight, block.norm3.bias)
    if config is ViTConfig:
        torch.testing.assert_close(block(x), attended + u)
    else:
        torch.testing.assert_close(block(x).tokens, attended + u + block.workspace(u).read)


@pytest.mark.parametrize("use_self_attention", [True, False])
def test_a_block_with_a_memory_of_an_image_attends_first_if_at_all(
    use_self_attention: bool,
) -> None:
    config = tiny(AiTConfig, workspace=IMAGE_MEMORY, use_self_attention=use_self_attention)
    block, x = shaken(config).get_submodule("blocks.0"), torch.randn(2, TOKENS, WIDTH)
    output = block(x)
    if use_self_attention:
        x = x + block.attention(block.norm1(x))
    u = block.norm3(block.feed_forward(block.norm2(x)))
    torch.testing.assert_close(output.tokens, x + u + block.workspace(u).read)


def test_without_self_attention_tokens_meet_only_in_the_memory_of_their_image() -> None:
    reached = {}
    for memory in (IMAGE_MEMORY, MEMORY):
        config = tiny(AiTConfig, use_self_attention=False, workspace=memory)
        block, x = build_model(config).get_submodule("blocks.0"), torch.randn(1, TOKENS, WIDTH)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(block.eval()(x).tokens[0, 0].square().sum(), x)
        reached[memory.scope] = gradient[0].any(dim=-1).nonzero().flatten().tolist()
    assert len(reached["image"]) > 1
    assert reached["batch"] == [0]  # a frozen memory is the same for all


def test_a_model_with_memories_of_images_gives_the_same_logits_in_training() -> None:
    model, given = build_model(VARIANTS["ait-image"]), images()
    before = copy.deepcopy(model.state_dict())
    trained = model(given)
    assert torch.equal(trained.logits, model.eval()(given).logits)
    assert trained.aux_loss == 0 and not list(model.buffers())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    alone = torch.cat([model.train()(image[None]).logits for image in given])
    torch.testing.assert_close(alone, trained.logits)


def test_without_a_read_the_tokens_write_and_are_balanced_but_get_nothing_back() -> None:
    config = VARIANTS["ait-without-read"]
    model = shaken(config)
    block, x = model.get_submodule("blocks.0"), torch.randn(2, TOKENS, WIDTH)
    before = block.workspace.priors.clone()
    output = block(x)
    assert not torch.equal(block.workspace.priors, before)
    assert output.balance_loss > 0
    attended = x + block.attention(block.norm1(x))
    u = block.norm3(block.feed_forward(block.norm2(attended)))
    torch.testing.assert_close(output.tokens, attended + u)
    reading = build_model(replace(config, read="hopfield"))
    reading.load_state_dict(model.state_dict())  # the same weights, some of them unused
    assert not torch.allclose(reading(images()).logits, model(images()).logits)
    assert model(images()).aux_loss > 0


# --- sizes ---


@pytest.mark.parametrize("use_read_norm", [True, False])
def test_a_memory_of_an_image_adds_exactly_these_parameters(use_read_norm: bool) -> None:
    image = ImageMemoryConfig(read_head_dim=8, use_read_norm=use_read_norm)
    memory = replace(IMAGE_MEMORY, image=image)  # 3 priors of width 4, 3 heads
    count = count_parameters(tiny(AiTConfig, workspace=memory, depth=2))
    without = count_parameters(tiny(ViTConfig, use_output_norm=True, depth=2))
    contents, queries, sources, output = 3 * 4, 4 * 12, 2 * WIDTH * 12, 12 * 4
    attractors, norms = 4 * WIDTH + WIDTH, 2 * 4 + 2 * WIDTH * use_read_norm
    each = contents + queries + sources + output + attractors + norms
    assert count - without == 2 * each


def test_models_of_width_128_have_exactly_the_known_number_of_parameters() -> None:
    sizes: dict[str, Any] = {
        "embed_dim": 128,
        "num_heads": 4,
        "head_dim": 32,
        "mlp_ratio": 2.0,
        "pos": "learned",
        "head": "mean",
    }
    memory = WorkspaceConfig(num_priors=16, num_heads=4, scope="image")
    models = {
        "attention": ViTConfig(**sizes),
        "attention and norm": ViTConfig(**sizes, use_output_norm=True),
        "workspace": AiTConfig(**sizes, workspace=memory, use_self_attention=False),
        "both": AiTConfig(**sizes, workspace=memory),
    }
    assert {name: count_parameters(config) for name, config in models.items()} == {
        "attention": 280_554,
        "attention and norm": 281_066,
        "workspace": 241_258,
        "both": 373_098,
    }


@both_models
def test_the_reference_count_adds_nothing_for_a_class_token_that_is_used(config: Any) -> None:  # noqa: ANN401
    models = {
        head: build_model(tiny(config, head=head, pos="learned")) for head in ("mean", "cls")
    }
    extra = {
        head: model.reference_parameters() - sum(p.numel() for p in model.parameters())
        for head, model in models.items()
    }
    assert extra["mean"] - extra["cls"] == WIDTH


# --- weight decay ---


def test_only_the_contents_of_memories_of_images_are_exempt_from_weight_decay() -> None:
    model = build_model(VARIANTS["ait-image"])
    contents = {f"blocks.{i}.workspace.priors" for i in range(2)}
    assert model.no_weight_decay() == contents
    decayed, exempt = (set(map(id, group["params"])) for group in parameter_groups(model))
    parameters = dict(model.named_parameters())
    assert exempt == {id(parameters[name]) for name in contents}
    assert decayed == set(map(id, parameters.values())) - exempt
    assert parameter_groups(model)[1]["weight_decay"] == 0
    for other in ("ait-mean", "vit-mean"):
        assert build_model(VARIANTS[other]).no_weight_decay() == set()


# --- features and classifiers, under the names of timm ---


@both_models
@pytest.mark.parametrize("head", ["flatten", "mean", "cls"])
def test_features_and_head_make_up_the_model(config: Any, head: str) -> None:  # noqa: ANN401
    model, x = build_model(tiny(config, head=head)).eval(), images()
    features = model.forward_features(x)
    assert features.shape == (3, TOKENS + (head == "cls"), model.num_features)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (3, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(x).logits)
    assert torch.equal(model.get_classifier()(pooled), model(x).logits)


@both_models
@pytest.mark.parametrize("head", ["flatten", "mean", "cls"])
def test_a_model_without_classes_returns_the_features_of_the_image(
    config: Any,  # noqa: ANN401
    head: str,
    tmp_path: Path,
) -> None:
    model, x = build_model(tiny(config, head=head)).eval(), images()
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert model.config.num_classes == 0
    assert torch.equal(model(x).logits, expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(x).logits, expected)


@both_models
def test_a_new_classifier_is_saved_with_its_size(config: Any, tmp_path: Path) -> None:  # noqa: ANN401
    model = build_model(tiny(config, head="mean")).eval()
    before = {k: v.clone() for k, v in model.state_dict().items() if "to_logits" not in k}
    model.reset_classifier(7)
    assert model(images()).logits.shape == (3, 7)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(images()).logits[0:0], torch.empty(0, 7))


@both_models
def test_the_kind_of_head_changes_if_the_tokens_fit(config: Any) -> None:  # noqa: ANN401
    model = build_model(tiny(config, head="flatten"))
    model.reset_classifier(4, "mean")
    assert type(model.head) is MeanHead
    assert model(images()).logits.shape == (3, 4)
    model.reset_classifier(4, "flatten")
    assert type(model.head) is FlattenHead
    with pytest.raises(ValueError, match="only models with head 'cls' have a class token"):
        model.reset_classifier(4, "cls")
    with pytest.raises(ValueError, match="needs questions"):
        model.reset_classifier(4, "question")
    with pytest.raises(ValueError, match="num_classes must be at least 0, not -1"):
        model.reset_classifier(-1)
    assert (model.config.head, model.config.num_classes) == ("flatten", 4)


def test_in_training_the_balance_loss_of_the_features_is_collected_once() -> None:
    model = build_model(tiny(AiTConfig, head="mean")).double()
    other, x = copy.deepcopy(model), images().double()
    torch.manual_seed(1)
    model.forward_features(x).sum().backward()
    loss = collect_balance_loss(model)
    torch.manual_seed(1)
    assert loss == other(x).aux_loss > 0
    with pytest.raises(RuntimeError, match="run a forward pass in training mode first"):
        collect_balance_loss(model)
    model.eval().forward_features(x)
    with pytest.raises(RuntimeError, match="run a forward pass in training mode first"):
        collect_balance_loss(model)


def test_a_loss_that_is_not_collected_is_warned_about() -> None:
    model = build_model(tiny(AiTConfig, head="mean"))
    model.forward_features(images())
    with pytest.warns(UserWarning, match="was not used: call collect_balance_loss"):
        model.forward_features(images())
    collect_balance_loss(model)

"""BRIMs against slow loops, and the rules by which its modules compete and learn."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.models import brims
from associative_transformer.models.brims import BRIMS, BRIMs, BRIMsConfig, LSTMState, flat
from twins import naive, slow_brims

TINY = BRIMsConfig(  # 9 steps
    image_size=6,
    resolution=3,
    num_classes=5,
    embed_dim=12,
    num_modules=4,
    module_dim=3,
    num_active=2,
    key_dim=5,
    num_comm_heads=2,
    comm_dim=3,
    dropout=0.0,
    attention_dropout=0.0,
)
DROPPING = replace(TINY, dropout=0.5, attention_dropout=0.1)


def shaken(config: BRIMsConfig) -> BRIMs:
    """Return the model in float64 with random weights, so that a forgotten bias would show."""
    model = BRIMs(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    return model


def pictures(config: BRIMsConfig, batch: int) -> Tensor:
    return torch.rand(batch, config.num_channels, config.image_size, config.image_size)


def slow_layer(model: BRIMs, index: int) -> slow_brims.Layer:
    c, layer, kv = model.config, model.recurrence.layers[index], model.recurrence.to_kv[index]
    q, lstm_h = layer.h_to_q_gates[..., : c.key_dim], layer.h_to_q_gates[..., c.key_dim :]
    comm_q, comm_k, comm_v = layer.to_qkv.chunk(3, dim=-1)
    (gate, out), (gate_bias, out_bias) = (
        getattr(layer.to_gate_out, name).chunk(2) for name in ("weight", "bias")
    )
    return slow_brims.Layer(
        q=q,
        k=kv[..., : c.key_dim],
        v=kv[..., c.key_dim :],
        lstm_x=layer.u_to_gates,
        lstm_h=lstm_h,
        lstm_biases=[bias[:, 0] for bias in layer.biases],
        comm_q=comm_q,
        comm_k=comm_k,
        comm_v=comm_v,
        comm_gate=naive.Affine(gate, gate_bias),
        comm_out=naive.Affine(out, out_bias),
        num_heads=c.num_comm_heads,
    )


def slow(model: BRIMs, images: Tensor) -> tuple[Tensor, list]:
    c = model.config
    return slow_brims.brims(
        images.double(),
        c.resolution,
        list(model.embed.weight.chunk(c.num_channels)),
        [slow_layer(model, index) for index in range(c.depth)],
        naive.Affine(model.head.weight, model.head.bias),
        c.num_active,
    )


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, depth=3),
        replace(TINY, depth=1),
        replace(TINY, num_channels=1, num_active=3, resolution=2),
        replace(TINY, num_active=4, resolution=2),
    ],
    ids=["two-layers", "three-layers", "one-layer", "gray", "all-active"],
)
def test_logits_and_gradients_equal_the_loops(config: BRIMsConfig) -> None:
    model, images = shaken(config), pictures(config, 2)
    (expected, _), logits = slow(model, images), model(images).logits
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    cotangent, parameters = torch.randn_like(expected), list(model.parameters())
    mine = torch.autograd.grad(logits, parameters, cotangent)
    theirs = torch.autograd.grad(expected, parameters, cotangent)
    for (name, _), a, b in zip(model.named_parameters(), mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert b.any(), name


def one_step(
    model: BRIMs, batch: int, index: int = 0, kept: Tensor | None = None
) -> tuple[Tensor, LSTMState, LSTMState]:
    """Take one step of a layer; return its sources, the state before and the state after."""
    c, layer = model.config, model.recurrence.layers[index]
    vectors = torch.randn(len(model.recurrence.to_kv[index]) - 1, batch, c.embed_dim).double()
    before = LSTMState(*torch.randn(2, c.num_modules, batch, c.module_dim).double())
    before.h.requires_grad_()
    return vectors, before, layer(vectors @ model.recurrence.to_kv[index][1:], before, kept)


def slow_steps(
    model: BRIMs,
    vectors: Tensor,
    before: LSTMState,
    index: int = 0,
    dropout: list[slow_brims.Dropout] | None = None,
) -> list[slow_brims.Step]:
    """Take the same step with the loops, one image at a time."""
    return [
        slow_brims.step(
            [torch.zeros_like(vectors[0, image]), *vectors[:, image]],
            list(before.h[:, image]),
            list(before.c[:, image]),
            slow_layer(model, index),
            model.config.num_active,
            dropout and dropout[image],
        )
        for image in range(vectors.shape[1])
    ]


def changed(before: LSTMState, after: LSTMState) -> Tensor:
    """Return which modules of which images changed their state, (n, B); h and c must agree."""
    in_h, in_c = ((a != b).any(dim=-1) for a, b in zip(before, after, strict=True))
    assert torch.equal(in_h, in_c)
    return in_h


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("num_active", [1, 2, 3])
def test_the_modules_that_attend_most_to_the_null_source_keep_their_state(
    index: int, num_active: int
) -> None:
    model = shaken(replace(TINY, num_active=num_active))
    vectors, before, after = one_step(model, 8, index)
    is_active = changed(before, after)
    assert (is_active.sum(dim=0) == num_active).all()
    expected = slow_steps(model, vectors, before, index)
    for image, step in enumerate(expected):
        scores = torch.tensor(step.null_score)
        assert scores[is_active[:, image]].max() < scores[~is_active[:, image]].min()
    assert len({tuple(column) for column in is_active.T.tolist()}) > 1


def test_if_modules_tie_the_first_ones_are_active() -> None:
    model = shaken(replace(TINY, resolution=1))  # in the first step every query is zero
    states: list[LSTMState] = []
    model.recurrence.register_forward_hook(lambda _, __, output: states.extend(output))
    model(pictures(TINY, 3))
    for state in states:
        for x in state:
            assert x[:2].all() and not x[2:].any()


def test_dropout_acts_on_the_input_and_on_the_communication() -> None:
    model = shaken(replace(TINY, attention_dropout=0.3))
    read, communicated = torch.rand(4, 3, 12) < 0.5, torch.rand(4, 3, 3) < 0.5
    vectors, before, after = one_step(model, 3, kept=torch.cat([read, communicated], dim=-1))
    factors = [
        slow_brims.Dropout(read[:, image] / 0.7, communicated[:, image] / 0.7)
        for image in range(3)
    ]
    expected = slow_steps(model, vectors, before, dropout=factors)
    for image, step in enumerate(expected):
        torch.testing.assert_close(after.h[:, image], torch.stack(step.h))
        torch.testing.assert_close(after.c[:, image], torch.stack(step.c))


def test_attention_dropout_is_drawn_for_each_step_layer_and_module() -> None:
    model = BRIMs(replace(TINY, attention_dropout=0.25))
    kept = model.draw(7, 100)
    assert kept.shape == (7, 2, 4, 100, 12 + 3)
    assert abs(kept.double().mean() - 0.75) < 0.01
    drawn = kept.flatten(0, 2)
    assert len({tuple(row) for row in drawn.flatten(1).tolist()}) == 7 * 2 * 4


def test_dropout_acts_on_the_embeddings_and_on_the_last_state() -> None:
    config = replace(TINY, embed_dim=24, num_modules=8, module_dim=3, key_dim=12, dropout=0.5)
    model, images = shaken(config), pictures(config, 16)
    with torch.no_grad():
        model.recurrence.to_kv[0][1] = torch.eye(24)  # so that keys and values are the embeddings
    captured: dict[str, list[Tensor]] = {"pixel": [], "h": [], "last": []}
    model.recurrence.register_forward_pre_hook(lambda _, args: captured["pixel"].append(args[0]))
    model.recurrence.register_forward_hook(
        lambda _, __, new: captured["h"].append(flat(new[-1].h))
    )
    model.head.register_forward_pre_hook(lambda _, args: captured["last"].append(args[0]))
    model(images)
    embedded = model.embed(model.read(images)).flatten(2)
    pairs = [(torch.cat(captured["pixel"]), embedded), (captured["last"][0], captured["h"][-1])]
    for dropped, whole in pairs:
        is_kept = dropped != 0
        assert 0.4 < is_kept[whole != 0].double().mean() < 0.6
        torch.testing.assert_close(dropped[is_kept], 2 * whole[is_kept])


def test_dropout_acts_only_in_training() -> None:
    model, images = BRIMs(DROPPING), pictures(TINY, 4)
    first, second = (model(images).logits for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval()(images).logits for _ in range(2))
    assert torch.equal(first, second)


def test_active_modules_read_inactive_ones_without_a_gradient_to_them() -> None:
    model = shaken(TINY)
    layer = model.recurrence.layers[0]
    vectors, before, after = one_step(model, 1)
    is_active = changed(before, after)[:, 0]
    weights = [layer.u_to_gates, layer.biases, before.h]
    gradients = torch.autograd.grad(after.h[is_active].sum(), weights)
    of_modules = [gradients[0], gradients[1].transpose(0, 1), gradients[2]]
    for gradient in of_modules:
        assert [bool(module.any()) for module in gradient] == is_active.tolist()
    with torch.no_grad():  # change the inactive modules
        layer.biases[:, ~is_active] += 1
    again = layer(vectors @ model.recurrence.to_kv[0][1:], before, None)
    assert torch.equal(changed(before, again)[:, 0], is_active)
    assert (again.h != after.h).any(dim=-1)[is_active].all()


def test_active_modules_send_gradients_to_each_other() -> None:
    model = shaken(TINY)
    _, before, after = one_step(model, 1)
    one, other = changed(before, after)[:, 0].nonzero().flatten()
    gradient = torch.autograd.grad(after.h[one].sum(), model.recurrence.layers[0].biases)[0]
    assert gradient[:, other].any()


def test_no_gradient_flows_through_the_competition() -> None:
    model = shaken(TINY)
    with torch.no_grad():
        for weight in model.recurrence.to_kv:
            weight[..., TINY.key_dim :] = 0  # queries and keys only select the active modules
    model(pictures(TINY, 4)).logits.square().sum().backward()
    for layer, weight in zip(model.recurrence.layers, model.recurrence.to_kv, strict=True):
        assert not layer.h_to_q_gates.grad[..., : TINY.key_dim].any()
        assert not weight.grad[..., : TINY.key_dim].any()
    assert layer.h_to_q_gates.grad[..., TINY.key_dim :].any()


def test_a_layer_also_reads_the_inactive_modules_of_the_layer_below() -> None:
    model = shaken(TINY)
    captured: list[Tensor] = []
    model.recurrence.layers[1].register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    states = [LSTMState(*torch.randn(2, 4, 1, 3).double()) for _ in range(2)]
    states[0].h.requires_grad_()
    after = model.recurrence(torch.randn(1, 1, 5 + 12).double(), states, None)
    is_active = changed(states[0], after[0])[:, 0]
    assert is_active.sum() == 2
    below = torch.cat(list(after[0].h), dim=-1)
    torch.testing.assert_close(captured[0][0], below @ model.recurrence.to_kv[1][1])
    # an inactive module shows the state that it kept
    gradient = torch.autograd.grad(captured[0].sum(), states[0].h)[0]
    assert gradient[~is_active].all()


def layers_above_in_the_reference(depth: int) -> list[int | None]:
    """Return whose previous state each layer reads; there, the lowest always reads the highest."""
    return [depth - 1, *[None] * (depth - 1)]


@pytest.mark.parametrize(
    ("depth", "above"), [(1, [None]), (2, [1, None]), (3, [1, 2, None]), (4, [1, 2, 3, None])]
)
def test_a_layer_reads_the_layer_directly_above_and_the_reference_does_so_at_depth_two(
    depth: int, above: list[int | None]
) -> None:
    model, sources = shaken(replace(TINY, depth=depth)), []
    for layer in model.recurrence.layers:
        layer.register_forward_pre_hook(lambda _, args: sources.append(args[0]))
    states = [LSTMState(*torch.randn(2, 4, 1, 3).double()) for _ in range(depth)]
    model.recurrence(torch.randn(1, 1, 5 + 12).double(), states, None)
    for i, (read, other) in enumerate(zip(sources, above, strict=True)):
        assert len(read) == (1 if other is None else 2)  # without the null source
        if other is not None:
            expected = flat(states[other].h) @ model.recurrence.to_kv[i][2]
            torch.testing.assert_close(read[1], expected)
    assert (above == layers_above_in_the_reference(depth)) == (depth == 2)


def test_the_weights_of_the_null_source_have_no_effect() -> None:
    model, images = shaken(TINY), pictures(TINY, 2)
    logits = model(images).logits
    logits.sum().backward()
    for weight in model.recurrence.to_kv:
        assert not weight.grad[0].any()
        assert weight.grad[1:].flatten(1).any(dim=1).all()
        with torch.no_grad():
            weight[0] += 1
    assert torch.equal(model(images).logits, logits)


def test_pixels_are_nearest_neighbors_in_raster_order_as_integers() -> None:
    config = replace(TINY, image_size=7, resolution=3)
    images = 1.4 * pictures(config, 2) - 0.2  # some out of range
    rows = BRIMs(config).read(images)
    expected = [slow_brims.pixels(image, 3) for image in images]
    shades = rows - torch.tensor([0, 256, 512])
    assert shades.transpose(0, 1).tolist() == expected
    assert 0 in shades and 255 in shades


def test_every_shade_of_each_channel_has_its_own_embedding() -> None:
    config = replace(TINY, image_size=16, resolution=16)
    image = (torch.arange(256.0) / 255).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    rows = BRIMs(config).read(image)[:, 0]
    assert rows.T.flatten().tolist() == list(range(3 * 256))


@pytest.mark.parametrize("chunk", [1, 3, 5, 9, 100])
def test_the_length_of_a_chunk_changes_no_number(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images, results = shaken(DROPPING), pictures(TINY, 4), []
    for length in (brims.CHUNK, chunk):
        monkeypatch.setattr(brims, "CHUNK", length)
        torch.manual_seed(0)
        logits = model(images).logits
        gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        results.append([logits, *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    return cross_entropy(model(images).logits, torch.arange(len(images)) % 5)


def test_activation_checkpointing_recomputes_only_in_training() -> None:
    model, images, calls = BRIMs(TINY), pictures(TINY, 2), []
    model.recurrence.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))

    def steps() -> int:
        calls.clear()
        loss = loss_of(model, images)
        if loss.requires_grad:
            loss.backward()
        return len(calls)

    assert steps() == 9
    model.set_grad_checkpointing()
    assert steps() == 18
    with torch.no_grad():
        assert steps() == 9
    model.set_grad_checkpointing(False)
    assert steps() == 9


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: many small operations on two are slow if other processes run."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("one_thread")
def test_a_model_overfits_one_small_batch() -> None:
    config = replace(TINY, resolution=2, embed_dim=96, module_dim=24, num_active=3)
    model, images, losses = BRIMs(config), pictures(config, 6), [math.inf]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-2, betas=(0.8, 0.95))
    while losses[-1] >= 0.05 and len(losses) <= 100:
        optimizer.zero_grad()
        loss = loss_of(model, images)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] > 1 and losses[-1] < 0.05


def test_under_bfloat16_autocast_the_competition_is_decided_in_float32() -> None:
    model, images = shaken(TINY).float(), pictures(TINY, 4)
    scores: list[Tensor] = []
    for layer in model.recurrence.layers:
        attend = layer.attend
        layer.attend = lambda q, k, attend=attend: scores.append(attend(q, k)) or scores[-1]
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
    later = torch.stack([score[0] for score in scores if len(score) == 3][2:])
    assert later.dtype == torch.float32
    assert not torch.equal(later, later.bfloat16().float())


@pytest.mark.parametrize(
    ("config", "live", "reference"),
    [
        (BRIMS, 1_308_010, 4_389_410),
        (replace(BRIMS, num_classes=100), 1_335_100, 4_416_500),
        (replace(BRIMS, resolution=32), 1_308_010, 4_389_410),
    ],
)
def test_the_parameters_are_those_of_the_reference(
    config: BRIMsConfig, live: int, reference: int
) -> None:
    with torch.device("meta"):
        model = BRIMs(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == live
    assert model.reference_parameters() == reference


def test_a_model_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert BRIMs(DROPPING)(pictures(TINY, 1)).logits.shape == (1, 5)


def test_the_weights_start_on_the_scales_of_the_reference() -> None:
    model, bound = BRIMs(BRIMS), 300**-0.5
    scales = [(model.embed.weight, 0.1), (model.head.weight, 0.1)]
    for layer in model.recurrence.layers:
        to_q, to_gates = layer.h_to_q_gates.split([32, 200], dim=-1)
        scales += [(weight, bound) for weight in (to_gates, layer.u_to_gates, layer.biases)]
        for weight in (to_q, layer.to_qkv):
            assert abs(weight.std() - 0.01) < 0.0005
    for weight in model.recurrence.to_kv:
        assert abs(weight.std() - 0.01) < 0.0005
    for weight, limit in scales:
        assert weight.abs().max() <= limit
        assert abs(weight.std() / limit - 3**-0.5) < 0.02
    assert not model.head.bias.any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 0}, "resolution .* 0"),
        ({"num_active": 7}, "num_active .* 6, not 7"),
        ({"num_active": 0}, "num_active .* 0"),
        ({"module_dim": 40}, "embed_dim .* 6 .* 40, not 300"),
        ({"num_channels": 7}, "num_channels 7 .* 300"),
        ({"dropout": 1.0}, "dropout .* 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout .* -0.1"),
        ({"key_dim": 0}, "key_dim .* 0"),
    ],
)
def test_an_invalid_field_is_an_error_that_names_it(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(BRIMS, **changes)


def test_questions_and_images_of_another_size_are_errors() -> None:
    model = BRIMs(TINY)
    with pytest.raises(ValueError, match="no questions"):
        model(pictures(TINY, 2), torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"\(B, 3, 6, 6\), not \(2, 3, 7, 7"):
        model(torch.rand(2, 3, 7, 7))


@pytest.fixture
def two_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[BRIMsConfig]:
    monkeypatch.setattr(brims, "CHUNK", 2)
    torch.compiler.reset()
    yield replace(DROPPING, resolution=2)
    torch.compiler.reset()


@pytest.mark.compiled
@pytest.mark.thorough
def test_compiled_chunks_give_the_same_numbers_including_dropout(two_chunks: BRIMsConfig) -> None:
    eager, images = BRIMs(two_chunks), pictures(two_chunks, 4)
    fast = copy.deepcopy(eager)
    fast.compile(fullgraph=True, backend="aot_eager")
    assert fast.state_dict().keys() == eager.state_dict().keys()
    for step, recompute in enumerate((False, False, True)):
        fast.set_grad_checkpointing(recompute)
        losses = []
        for model in (eager, fast):
            torch.manual_seed(step)
            with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
                losses.append(loss_of(model, images))
                losses[-1].backward()
        torch.testing.assert_close(*losses)
        for a, b in zip(eager.parameters(), fast.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    with torch.no_grad():
        answers = [model.eval()(images).logits for model in (eager, fast)]
    torch.testing.assert_close(*answers)


@pytest.mark.compiled
@pytest.mark.thorough
def test_one_graph_serves_all_chunks(two_chunks: BRIMsConfig) -> None:
    ranked: list[int] = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        ranked.append(sum("argsort" in str(node.target) for node in graph.graph.nodes))
        return graph

    model, images = BRIMs(two_chunks), pictures(two_chunks, 4)
    model.compile(fullgraph=True, backend=count)
    sorts = 2 * brims.CHUNK * two_chunks.depth  # a layer sorts twice in a step
    for _ in range(2):
        loss_of(model, images).backward()
    assert ranked == [sorts]
    with torch.no_grad():
        model.eval()(images)
    assert ranked == [sorts, sorts]

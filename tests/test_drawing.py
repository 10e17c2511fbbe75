import itertools
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from reference import images

import dnat
from dnat.edges import in_order, problems, units
from dnat.lab.drawing import (
    Graph,
    Node,
    OperationRow,
    draw_network,
    graphs_of,
    networks,
    rows_from_json,
    rows_to_json,
)
from dnat.lab.runs import picture_rows
from dnat.planning import find_edges
from dnat.results import Commitment, EdgeReport


def drawn(name, size=32, choices=None, space="dnat", **options):
    """A network's rows, and its graphs before and after."""
    program = dnat.trace(dnat.build(name, seed=0, **options), images(2, size))
    edges = {e.key: e for e in find_edges(program, space)}
    every, choices = in_order(({e.key: e for e in units(program)} | edges).values()), choices or {}
    rows = [
        OperationRow(
            key=e.key,
            kind=e.kind if e.key in edges else "fixed",
            operation=e.operation,
            shape_in=e.shape_in,
            shape_out=e.shape_out,
            madds=e.madds,
            choice=choices.get(e.key, "original"),
        )
        for e in every
    ]
    return rows, graphs_of(program, every, choices)


CHANGED = {
    "layer1.0.conv1>layer1.0.bn1": "identity",
    "layer2.1.conv2>layer2.1.bn2": "none",
    "layer1.2.skip3": "identity",
}
COSTS = {"before": dnat.Cost(200_000, 40_000_000), "after": dnat.Cost(100_000, 30_000_000)}


def test_changed_edges_are_marked_and_the_file_is_the_same_every_time(tmp_path):
    rows, graphs = drawn("resnet20", choices=CHANGED, skips=True)
    first, second = (
        draw_network(rows, tmp_path / n, graphs=graphs, title="ResNet20", **COSTS, formats=("svg",))[0]
        for n in "ab"
    )
    assert first.read_bytes() == second.read_bytes()
    marks = {e.get("id") for e in ElementTree.parse(first).iter()}
    edges = {m for m in marks if str(m).startswith("edge:")}
    assert edges == {
        "edge:conv1>bn1:original",
        "edge:layer1.0.conv1>layer1.0.bn1:identity",
        "edge:layer1.0.conv2>layer1.0.bn2:original",
        "edge:layer1.1.conv1>layer1.1.bn1:original",  # the next is like it
        "edge:layer1.1.conv2>layer1.1.bn2:original",
        *(f"edge:layer{i}.0.conv{j}>layer{i}.0.bn{j}:original" for i in (2, 3) for j in (1, 2)),
        "edge:layer2.1.conv1>layer2.1.bn1:removed",
        "edge:layer2.1.conv2>layer2.1.bn2:none",
        *(f"edge:layer{b}.conv{j}>layer{b}.bn{j}:original" for b in ("2.2", "3.1") for j in (1, 2)),
        "edge:fc:original",
    }
    assert "after:layer1.2.skip3" in marks
    assert "after:layer2.1.conv1>layer2.1.bn1" not in marks
    text = first.read_text()
    assert ">× 2<" in text
    assert "3 of 43 edges changed: 1 identity, 1 none, 1 skip connections added" in text
    assert "(-25.0%)" in text


def test_a_narrower_layer_says_how_many_channels_stay(tmp_path):
    choices = {"layer1.0.conv1:width": "5/8", "layer2.0.conv2>layer2.0.bn2": "none"}
    rows, graphs = drawn("resnet8", choices=choices, space="dnat,width")
    (file,) = draw_network(rows, tmp_path / "a", graphs=graphs, title="ResNet8", **COSTS, formats=("svg",))
    elements = {str(e.get("id")): e for e in ElementTree.parse(file).iter()}
    # A width is no box: it stands in the layer that makes the channels.
    key = "layer1.0.conv1>layer1.0.bn1"
    for gid, bar in ((f"edge:{key}:narrowed", f"kept:before:{key}"), (f"after:{key}", f"kept:after:{key}")):
        box, line = (next(p.get("d") for p in elements[g].iter() if p.get("d")) for g in (gid, bar))
        assert _wide(line) / _wide(box) == pytest.approx(5 / 8, rel=1e-3)
    text = file.read_text()
    assert text.count(">conv1 → 10 of 16<") == 2
    assert "1 of 4 operations changed: 0 identity, 1 none;  1 of 3 widths narrowed" in text.replace(";", "; ")


def _wide(path):
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path)]
    return max(numbers[::2]) - min(numbers[::2])


@pytest.mark.parametrize("name", ["resnet8", "torchvision:mobilenet_v2"])
def test_rows_of_a_run_have_the_channels_that_its_network_has(name):
    network, draws, example = dnat.build(name, seed=0), random.Random(0), torch.rand(2, 3, 64, 64)
    data = dnat.Data.from_tensors("two", *[(example, torch.tensor([0, 1]))] * 2)
    edges = find_edges(dnat.trace(network, example), "width")
    choices = {e.key: draws.choice(e.choices) for e in edges}
    blank = {"gates": (0.0, 0.0, 0.0), "margin": 0.0, "saved": 0}
    names = ("key", "kind", "operation", "shape_in", "shape_out", "madds", "group")
    reports = tuple(EdgeReport(**{n: getattr(e, n) for n in names}, choice=choices[e.key], **blank) for e in edges)
    moment = Commitment(edges=reports)
    made = dnat.discretize(network, {k: c for k, c in choices.items() if c != "original"}, example)
    rows = picture_rows(network, data, moment, "width")
    assert {row.key: row.state for row in rows if row.kind == "width"} == {
        key: "original" if choice == "original" else "narrowed" for key, choice in choices.items()
    }
    seen = 0
    for row in rows:
        if row.kind == "fixed":
            layer = made.get_submodule(row.entry)
            plain = isinstance(layer, torch.nn.Linear)
            real = (layer.in_features, layer.out_features) if plain else (layer.in_channels, layer.out_channels)
            assert (row.left or row.channels) == real, row.key
            seen += row.left is not None
    assert seen > 3


NAMES = [
    ("resnet8", 32, "dnat"),
    ("resnet56", 32, "dnat"),
    ("torchvision:resnet50", 64, "dnat"),
    ("torchvision:mobilenet_v2", 32, "dnat,width"),
    ("torchvision:vgg16_bn", 32, "dnat"),
    ("torchvision:googlenet", 64, "dnat"),
    ("darts", 32, "dnat"),
]


def changed(name, size, space):
    """Rows and graphs of a network of which something changed in every third place."""
    options = {"darts": {"layers": 6, "channels": 4}, "torchvision:googlenet": {"init_weights": False}}.get(
        name, {}
    )
    program = dnat.trace(dnat.build(name, seed=0, **options), images(2, size))
    chosen = {}
    for edge in find_edges(program, space)[::3]:
        choice = "5/8" if edge.place else edge.choices[-1]
        if choice in edge.choices and not problems(chosen | {edge: choice}):
            chosen[edge] = choice
    return drawn(name, size, {edge.key: choice for edge, choice in chosen.items()}, space, **options)


@pytest.mark.parametrize(("name", "size", "space"), NAMES)
def test_no_texts_overlap_and_no_arrow_crosses_a_box(name, size, space):
    rows, graphs = changed(name, size, space)
    axes = networks._page(rows, graphs, name, COSTS["before"], COSTS["after"])
    assert pytest.approx(180 / 25.4, abs=0.01) == networks.WIDTH
    # One row of a cell of DARTS that changed at every third edge takes 186 mm.
    assert networks.WIDTH - 0.01 <= axes.figure.get_figwidth() <= 1.05 * networks.WIDTH
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    boxes = [t.get_window_extent(canvas.get_renderer()) for t in axes.texts if t.get_text()]
    page = axes.figure.bbox
    for box in boxes:
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1
    corners = torch.tensor([[b.x0, b.y0, b.x1, b.y1] for b in boxes])
    low, high = (
        torch.maximum(corners[:, None, :2], corners[:, :2]),
        torch.minimum(corners[:, None, 2:], corners[:, 2:]),
    )
    overlap = ((high - low) > 2).all(-1)
    assert overlap.sum() == len(boxes), "only with themselves"
    assert min(t.get_fontsize() for t in axes.texts if t.get_text()) >= 6


@pytest.mark.parametrize(("name", "size", "space"), NAMES)
@pytest.mark.parametrize("half", [False, True])
def test_wires_pass_beside_all_nodes(name, size, space, half):
    rows, graphs = changed(name, size, space)
    for which, graph in zip(("before", "after"), graphs, strict=True):
        panel = networks._maker(which, graph, rows, graphs)(networks.WIDTH / 2 if half else networks.WIDTH)
        places = torch.tensor([panel.flow.nodes[i] for i in panel.flow.nodes])
        halves = torch.tensor([[panel.boxes[i].width / 2, panel.boxes[i].height / 2] for i in panel.flow.nodes])
        apart = (places[:, None] - places).abs() - halves[:, None] - halves
        assert ((apart > 0).any(-1) | torch.eye(len(places), dtype=torch.bool)).all()
        for points in [wire.points for wire in panel.flow.wires] + list(panel.flow.joints):
            line = torch.tensor(list(along(points)))
            inside = ((line[:, None] - places).abs() < halves - 1e-3).all(-1)
            assert not inside.any()
        for wire in panel.flow.wires:
            (x, y), b = wire.points[-1], wire.arrow[1]
            box, (across, down) = panel.boxes[b], panel.flow.nodes[b]
            assert abs(x - across) <= box.width / 2
            assert y == pytest.approx(down - box.height / 2)


def along(points):
    """Points of a wire: straight, or bent as two tangents that go down."""
    for (a, b), (c, d) in itertools.pairwise(points):
        for step in range(17):
            t = step / 16
            bend = 3 * t**2 - 2 * t**3 if a != c and b != d else t
            height = b + (d - b) * (1.5 * t - 1.5 * t**2 + t**3) if a != c and b != d else b + (d - b) * t
            yield a + (c - a) * bend, height


@pytest.mark.parametrize(("name", "size", "space"), NAMES)
def test_every_node_and_arrow_is_drawn_or_stands_for_one_alike(name, size, space):
    rows, graphs = changed(name, size, space)
    panel = networks._maker("before", graphs[0], rows, graphs)(networks.WIDTH)
    stands = {}
    for frame in panel.flow.frames:
        first, *others = frame.section.alike
        for other in others:
            assert [panel.boxes[i] for i in other] == [panel.boxes[i] for i in first]
            stands |= dict(zip(other, first, strict=True))
    assert set(panel.flow.nodes) | set(stands) == set(range(len(panel.graph.nodes)))
    assert not set(panel.flow.nodes) & set(stands)
    drawn_arrows = Counter(wire.arrow for wire in panel.flow.wires)
    groups = [group for frame in panel.flow.frames for group in frame.section.alike]
    within = {i: n for n, group in enumerate(groups) for i in group}
    for arrow, times in Counter(panel.graph.arrows).items():
        a, b = arrow
        if b not in stands:
            assert drawn_arrows[arrow] == times
        elif within.get(a) == within[b] and a in stands:  # inside a block that another stands for
            assert drawn_arrows[stands[a], stands[b]] == times
    assert sum(drawn_arrows.values()) == sum(b not in stands for _, b in panel.graph.arrows)


def test_names_of_users_are_text(tmp_path):
    row = OperationRow("blocks.0.<script>$x_$", "unit", "$a_b$&<b>", (3, 8, 8), (3, 8, 8), 10, "identity")
    graph = Graph((Node("operation", row.operation, row.key, row.key, 0, (3, 8, 8), 10),), ())
    graphs = graph, graph
    (path,) = draw_network(
        [row], tmp_path / "x", graphs=graphs, title="<script>$\\frac{", **COSTS, formats=("svg",)
    )
    text = path.read_text()
    assert "<script>" not in text
    assert any("$a_b$&<b>" in (e.text or "") for e in ElementTree.parse(path).iter())


def test_rows_survive_json():
    rows = [
        *drawn("resnet8", skips=True)[0],
        OperationRow("a", "unit", "conv", (1,), (2,), 3, "none", (0.0, 0.5, 1.0), True),
        OperationRow("b", "unit", "conv", (4,), (2,), 3, left=(3, 2)),
    ]
    assert rows_from_json(json.loads(json.dumps(rows_to_json(rows)))) == rows


def test_formats(tmp_path):
    rows, graphs = drawn("resnet8")
    files = draw_network(rows, tmp_path / "a.b", graphs=graphs, title="x", **COSTS, formats=("png", "svg", "pdf"))
    heads = [path.read_bytes()[:5] for path in files]
    assert [p.name for p in files] == ["a.b.png", "a.b.svg", "a.b.pdf"]
    assert heads[0][1:4] == b"PNG"
    assert heads[1] == b"<?xml"
    assert heads[2] == b"%PDF-"
    with pytest.raises(ValueError, match="unknown format 'gif'"):
        draw_network([], tmp_path / "x", graphs=graphs, title="x", **COSTS, formats=("gif",))


def test_what_becomes_an_identity_together_looks_like_it():
    key = "features.3.conv"
    rows, graphs = drawn("torchvision:mobilenet_v2", 32, {key: "identity"})
    panel = networks._maker("before", graphs[0], rows, graphs)(networks.WIDTH)
    looks = {b.state for n, b in zip(panel.graph.nodes, panel.boxes, strict=True) if n.path.startswith(f"{key}.")}
    assert looks == {"identity"}

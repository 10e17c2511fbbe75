import itertools
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from reference import images

import dnat
from dnat.edges import in_order, units
from dnat.lab.drawing import OperationRow, draw_network, networks, rows_from_json, rows_to_json
from dnat.lab.runs import picture_rows
from dnat.planning import find_edges
from dnat.results import Commitment, EdgeReport


def rows_of(name, size=32, choices=None, space="dnat", **options):
    program = dnat.trace(dnat.build(name, seed=0, **options), images(2, size))
    edges = {e.key: e for e in find_edges(program, space)}
    choices = choices or {}
    return [
        OperationRow(
            key=e.key,
            kind=e.kind if e.key in edges else "fixed",
            operation=e.operation,
            shape_in=e.shape_in,
            shape_out=e.shape_out,
            madds=e.madds,
            choice=choices.get(e.key, "original"),
        )
        for e in in_order(({e.key: e for e in units(program)} | edges).values())
    ]


CHANGED = {
    "layer1.0.conv1>layer1.0.bn1": "identity",
    "layer2.1.conv2>layer2.1.bn2": "none",
    "layer1.2.skip3": "identity",
}
COSTS = {"before": dnat.Cost(200_000, 40_000_000), "after": dnat.Cost(100_000, 30_000_000)}


def test_changed_edges_are_marked_and_the_file_is_the_same_every_time(tmp_path):
    rows = rows_of("resnet20", choices=CHANGED, skips=True)
    first, second = (
        draw_network(rows, tmp_path / n, title="ResNet20", **COSTS, formats=("svg",))[0] for n in "ab"
    )
    assert first.read_bytes() == second.read_bytes()
    marks = {e.get("id") for e in ElementTree.parse(first).iter() if str(e.get("id")).startswith("edge:")}
    states = {row.key: row.state for row in rows}
    assert marks == {f"edge:{key}:{state}" for key, state in states.items()}
    assert states["layer1.0.conv1>layer1.0.bn1"] == "identity"
    assert states["layer1.2.skip3"] == "added"
    assert states["layer1.1.skip3"] == "absent"
    text = first.read_text()
    assert "3 of 43 edges changed: 1 identity, 1 none, 1 skip connections added" in text
    assert "(-25.0%)" in text


def test_a_narrower_layer_says_how_many_channels_stay(tmp_path):
    choices = {"layer1.0.conv1:width": "5/8", "layer2.0.conv2>layer2.0.bn2": "none"}
    rows = rows_of("resnet8", choices=choices, space="dnat,width")
    first, second = (draw_network(rows, tmp_path / n, title="ResNet8", **COSTS, formats=("svg",))[0] for n in "ab")
    assert first.read_bytes() == second.read_bytes()
    elements = {e.get("id"): e for e in ElementTree.parse(first).iter() if str(e.get("id")).startswith("edge:")}
    # A width is no box: it stands in the layer that makes the channels, if it is narrower.
    boxes = {f"edge:{row.key}:{row.state}" for row in rows if row.kind != "width"}
    assert set(elements) == boxes | {"edge:layer1.0.conv1:width:narrowed"}
    (box,), (line,) = (
        [path.get("d") for path in elements[f"edge:layer1.0.conv1{rest}"].iter() if path.get("d")]
        for rest in (">layer1.0.bn1:original", ":width:narrowed")
    )
    assert _wide(line) / _wide(box) == pytest.approx(5 / 8, rel=1e-3)
    text = first.read_text()
    assert ">→ 10 of 16<" in text
    assert "1 of 4 operations changed: 0 identity, 1 none;  1 of 3 widths narrowed" in text
    assert text.count("#cc79a7") == text.count("#f9ecf3") + 1 == 3  # the box, the legend's, the line


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


@pytest.mark.parametrize(
    ("name", "size", "narrow"),
    [
        ("resnet8", 32, False),
        ("resnet56", 32, False),
        ("torchvision:mobilenet_v2", 32, True),
        ("torchvision:vgg16_bn", 32, False),
    ],
)
def test_nothing_overlaps_or_leaves_the_page(name, size, narrow, tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: pages.append(self))
    rows = rows_of(name, size, space="dnat,width" if narrow else "dnat")
    rows = [replace(row, choice="5/8") if row.kind == "width" else row for row in rows]
    draw_network(rows, tmp_path / "x", title=name, **COSTS, formats=("png",))
    (figure,) = pages
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [t.get_window_extent(canvas.get_renderer()) for t in figure.axes[0].texts if t.get_text()]
    page = figure.bbox
    for box in boxes:
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1
    boxes.sort(key=lambda b: -b.y1)
    for a, b in itertools.combinations(boxes, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide < 2 or high < 2
    assert min(t.get_fontsize() for t in figure.axes[0].texts if t.get_text()) >= 7


def test_names_of_users_are_text(tmp_path):
    row = OperationRow("blocks.0.<script>$x_$", "unit", "$a_b$&<b>", (3, 8, 8), (3, 8, 8), 10, "identity")
    (path,) = draw_network([row], tmp_path / "x", title="<script>$\\frac{", **COSTS, formats=("svg",))
    text = path.read_text()
    assert "<script>" not in text
    assert any("$a_b$&<b>" in (e.text or "") for e in ElementTree.parse(path).iter())


def test_rows_survive_json():
    rows = [
        *rows_of("resnet8", skips=True),
        OperationRow("a", "unit", "conv", (1,), (2,), 3, "none", (0.0, 0.5, 1.0), True),
        OperationRow("b", "unit", "conv", (4,), (2,), 3, left=(3, 2)),
    ]
    assert rows_from_json(json.loads(json.dumps(rows_to_json(rows)))) == rows


def test_formats(tmp_path):
    files = draw_network(rows_of("resnet8"), tmp_path / "a.b", title="x", **COSTS, formats=("png", "svg", "pdf"))
    heads = [path.read_bytes()[:5] for path in files]
    assert [p.name for p in files] == ["a.b.png", "a.b.svg", "a.b.pdf"]
    assert heads[0][1:4] == b"PNG"
    assert heads[1] == b"<?xml"
    assert heads[2] == b"%PDF-"
    with pytest.raises(ValueError, match="unknown format 'gif'"):
        draw_network([], tmp_path / "x", title="x", **COSTS, formats=("gif",))


def test_what_dies_inside_a_changed_branch_is_shown_as_gone():
    block = networks._blocks(
        [
            OperationRow("f.0.conv", "branch", "Sequential", (4, 8, 8), (4, 8, 8), 1, "none"),
            OperationRow("f.0.conv.1", "unit", "conv_3x3", (4, 8, 8), (4, 8, 8), 1),
        ]
    )[0]
    assert networks._is_inside(block.units[0], block.wholes[0])

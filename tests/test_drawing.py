import itertools
import json
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from reference import images

import dnat
from dnat.drawing import Row, draw, networks, rows_from_json, rows_to_json
from dnat.edges import in_order, units
from dnat.planning import find_edges


def rows_of(name, size=32, choices=None, **options):
    program = dnat.trace(dnat.build(name, seed=0, **options), images(2, size))
    edges = {e.key: e for e in find_edges(program)}
    choices = choices or {}
    return [
        Row(
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
    first, second = (draw(rows, tmp_path / n, title="ResNet20", **COSTS, formats=("svg",))[0] for n in "ab")
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


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet8", 32), ("resnet56", 32), ("torchvision:mobilenet_v2", 32), ("torchvision:vgg16_bn", 32)],
)
def test_nothing_overlaps_or_leaves_the_page(name, size, tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: pages.append(self))
    draw(rows_of(name, size), tmp_path / "x", title=name, **COSTS, formats=("png",))
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
    row = Row("blocks.0.<script>$x_$", "unit", "$a_b$&<b>", (3, 8, 8), (3, 8, 8), 10, "identity")
    (path,) = draw([row], tmp_path / "x", title="<script>$\\frac{", **COSTS, formats=("svg",))
    text = path.read_text()
    assert "<script>" not in text
    assert any("$a_b$&<b>" in (e.text or "") for e in ElementTree.parse(path).iter())


def test_rows_survive_json():
    rows = [
        *rows_of("resnet8", skips=True),
        Row("a", "unit", "conv", (1,), (2,), 3, "none", (0.0, 0.5, 1.0), True),
    ]
    assert rows_from_json(json.loads(json.dumps(rows_to_json(rows)))) == rows


def test_formats(tmp_path):
    files = draw(rows_of("resnet8"), tmp_path / "a.b", title="x", **COSTS, formats=("png", "svg", "pdf"))
    heads = [path.read_bytes()[:5] for path in files]
    assert [p.name for p in files] == ["a.b.png", "a.b.svg", "a.b.pdf"]
    assert heads[0][1:4] == b"PNG"
    assert heads[1] == b"<?xml"
    assert heads[2] == b"%PDF-"
    with pytest.raises(ValueError, match="unknown format 'gif'"):
        draw([], tmp_path / "x", title="x", **COSTS, formats=("gif",))


def test_what_dies_inside_a_changed_branch_is_shown_as_gone():
    block = networks._blocks(
        [
            Row("f.0.conv", "branch", "Sequential", (4, 8, 8), (4, 8, 8), 1, "none"),
            Row("f.0.conv.1", "unit", "conv_3x3", (4, 8, 8), (4, 8, 8), 1),
        ]
    )[0]
    assert networks._inside(block.units[0], block.wholes[0])

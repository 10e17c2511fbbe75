import itertools
import xml.etree.ElementTree as ElementTree
from collections import Counter

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch

from dnat.lab.drawing import Change, cell_edges, draw_genotype
from dnat.lab.drawing.changes import short_name
from dnat.lab.drawing.layout import lay_out
from dnat.networks.genotypes import (
    GENOTYPES,
    OPERATIONS,
    CellEdge,
    CellGenotype,
    Genotype,
    concat_nodes,
    published,
    transformed,
)

PAIRS = [
    ("darts_v2", "nat_darts"),
    ("darts_v2", "natv2_darts"),
    ("enas", "nat_enas"),
    ("naonet", "nat_naonet"),
    ("resblock", "nat_resblock"),
    ("resblock", "natv2_resblock"),
    ("vgg_cell", "natv2_vgg_cell"),
    ("mobilenetv2_cell", "nat_mobilenetv2_cell"),
]
TITLE = "A title of more than one line in small pictures, with $signs$ of _mathematics_ that are none, and <tags>"


def random_cell(seed):
    """Awkward cells: many layers, nodes with one edge or five, unread inputs and nodes, one node in the output."""
    random = np.random.default_rng(seed)
    nodes = []
    for i in range(int(random.integers(1, 9))):
        inputs = random.integers(0, i + 2, size=int(random.integers(1, 6)))
        nodes.append(tuple(CellEdge(str(random.choice(OPERATIONS)), int(source)) for source in inputs))
    return CellGenotype(tuple(nodes), concat_nodes(nodes, "loose-end" if seed % 2 else "all")[-3:])


def genotypes(name):
    """What a case's name stands for: a genotype and, of a pair, the other one."""
    if name.startswith("random"):
        seed = int(name.removeprefix("random"))
        return Genotype(random_cell(seed), random_cell(seed + 100)), None
    before, _, after = name.partition(">")
    return published(before), published(after) if after else None


CASES = [*GENOTYPES, *(">".join(pair) for pair in PAIRS), *(f"random{seed}" for seed in range(6))]


def cells_of(genotype, other=None):
    """The cells that a picture shows: one if both are equal."""
    once = genotype.normal == genotype.reduce and (other is None or other.normal == other.reduce)
    return [genotype.normal] if once else [genotype.normal, genotype.reduce]


def overlap(a, b):
    """Whether two extents share more than a pixel in both directions."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


@pytest.mark.parametrize("name", CASES)
def test_pictures_are_legible(name, tmp_path, monkeypatch):
    before, after = genotypes(name)
    pages = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: pages.append(self))
    draw_genotype(before, tmp_path / "x", after=after, title=name, subtitle=TITLE, formats=("png",))
    (figure,) = pages
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    texts = [t for t in axes.texts if t.get_text()]
    labels = [t.get_window_extent(canvas.get_renderer()) for t in texts]
    for label in labels:
        assert figure.bbox.x0 <= label.x0
        assert label.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= label.y0
        assert label.y1 <= figure.bbox.y1
    assert not [(a, b) for a, b in itertools.combinations(labels, 2) if overlap(a, b)]
    assert min(t.get_fontsize() for t in texts) >= 8

    # Every operation stands in a box of its own, in front of which nothing runs.
    solids = [p for p in axes.patches if isinstance(p, FancyBboxPatch | Circle)]
    boxes = [p.get_window_extent() for p in solids]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if overlap(a, b)]
    inside = [
        t.get_text()
        for t, label in zip(texts, labels, strict=True)
        if any(b.x0 <= label.x0 and label.x1 <= b.x1 and b.y0 <= label.y0 and label.y1 <= b.y1 for b in boxes)
    ]
    wanted = Counter()
    for genotype, other in ((before, after), (after, before)):
        for cell in cells_of(genotype, other) if genotype else ():
            wanted += Counter(short_name(edge.operation) for node in cell.nodes for edge in node)
            wanted += Counter(map(str, range(len(cell.nodes))))
            wanted += Counter(("$c_{k-2}$", "$c_{k-1}$", "$c_{k}$"))
    assert Counter(inside) == wanted
    wires = [p for p in axes.patches if isinstance(p, PathPatch)]
    points = np.concatenate([curve_points(wire, axes) for wire in wires])
    for solid, box in zip(solids, boxes, strict=True):
        x, y = (points - (box.p0 + box.p1) / 2).T
        if isinstance(solid, Circle):
            assert not (np.hypot(x, y) < box.width / 2 - 1.5).any()
        else:
            assert not ((abs(x) < box.width / 2 - 1.5) & (abs(y) < box.height / 2 - 1.5)).any()


def curve_points(wire, axes):
    """Points on a wire, some pixels apart."""
    found = []
    for start, end in itertools.pairwise(wire.get_path().interpolated(1).to_polygons(closed_only=False)[0]):
        found.append(start + (end - start) * np.linspace(0, 1, 40)[:, None])
    return axes.transData.transform(np.concatenate(found))


def genotype_changes(before, after):
    """The edges whose operations differ, in order."""
    edges = (*cell_edges("normal", before, after), *cell_edges("reduce", before, after))
    return tuple(edge for edge in edges if edge.before != edge.after)


def marks(path, prefix):
    ids = (str(e.get("id")) for e in ElementTree.parse(path).iter())
    return sorted(i for i in ids if i.startswith(prefix))


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_every_edge_has_its_state_and_the_file_is_the_same_every_time(before, after, tmp_path):
    before, after = published(before), published(after)
    first, second = (
        draw_genotype(before, tmp_path / n, after=after, title="x", formats=("svg",))[0] for n in "ab"
    )
    assert first.read_bytes() == second.read_bytes()
    states = {change.key: change.state for change in genotype_changes(before, after)}
    expected = []
    for name, cell in zip(("normal", "reduce"), cells_of(after), strict=False):
        for i, j in ((i, j) for i, node in enumerate(cell.nodes) for j in range(len(node))):
            key = f"{name}.nodes[{i}][{j}]"
            same = "absent" if cell.nodes[i][j].operation == "null" else "original"
            expected.append(f"edge:{key}:{states.get(key, same)}")
    assert marks(first, "edge:") == sorted(expected)
    assert marks(first, "before:") == sorted("before:" + mark.split(":")[1] for mark in expected)


def test_the_words_of_a_comparison(tmp_path):
    def text(before, after):
        pair = {"after": published(after)} if after else {}
        return draw_genotype(published(before), tmp_path / "x", **pair, title="T", formats=("svg",))[0].read_text()

    found = text("naonet", "nat_naonet")
    assert "6 of 20 edges changed: 3 skip connections, 2 removed, 1 other operation<" in found
    for words in ("normal cell, before", "reduce cell, after", "becomes a skip connection", "unchanged"):
        assert words in found
    assert "connection added" not in found
    assert "no connection" not in found
    found = text("resblock", "nat_resblock")
    assert "2 of 8 edges of each cell changed: 2 connections added<" in found
    assert "normal and reduce cell, after" in found
    assert "null: no connection" in found
    assert "0 of 16 edges changed<" in text("darts_v2", "darts_v2")
    found = text("snas_aggressive", None)
    assert "edge:reduce.nodes[3][1]:absent" in found
    assert "changed" not in found


def test_changes_are_told_edge_by_edge():
    changes = genotype_changes(published("vgg_cell"), published("natv2_vgg_cell"))
    assert [(c.key, c.input, c.state) for c in changes if c.cell == "normal"] == [
        ("normal.nodes[0][0]", 0, "added"),
        ("normal.nodes[1][0]", 0, "added"),
        ("normal.nodes[2][1]", 3, "other"),
        ("normal.nodes[3][0]", 0, "added"),
    ]
    assert Change("reduce", 0, 1, 0, "sep_conv_3x3", "null").state == "none"
    assert Change("reduce", 0, 1, 0, "sep_conv_3x3", "skip_connect").state == "identity"
    assert Change("reduce", 0, 1, 0, "null", "null").state == "absent"
    assert Change("reduce", 0, 1, 0, "skip_connect", "skip_connect").state == "original"
    assert genotype_changes(published("enas"), published("enas")) == ()


def test_choices_and_changes_are_inverse():
    before = published("darts_v2")
    choices = {("normal", 0, 1): "identity", ("normal", 3, 0): "original", ("reduce", 2, 0): "none"}
    changes = genotype_changes(before, transformed(before, choices))
    assert {(c.cell, c.node, c.edge): c.state for c in changes} == {
        place: choice for place, choice in choices.items() if choice != "original"
    }
    with pytest.raises(ValueError, match=r"no edge normal\.nodes\[4\]\[0\]"):
        transformed(before, {("normal", 4, 0): "none"})
    with pytest.raises(ValueError, match="unknown choice 'nine'; did you mean 'none'"):
        transformed(before, {("normal", 0, 0): "nine"})


@pytest.mark.parametrize(
    ("other", "place"),
    [
        (
            {"nodes": lambda nodes: nodes[:-1], "concat": lambda concat: (2,)},
            "normal.nodes: 4 nodes before, 3 nodes",
        ),
        ({"nodes": lambda nodes: (nodes[0][:1], *nodes[1:])}, "normal.nodes[0]: 2 edges before, 1 edges after"),
        (
            {"nodes": lambda nodes: (nodes[0], (nodes[1][0], CellEdge("null", 0)), *nodes[2:])},
            "normal.nodes[1][1].input: 1 before, 0 after",
        ),
        ({"concat": lambda concat: concat[1:]}, "normal.concat: (2, 3, 4, 5) before, (3, 4, 5) after"),
    ],
)
def test_genotypes_that_differ_in_structure_are_refused(other, place, tmp_path):
    before = published("darts_v2")
    cell = before.normal
    changed = CellGenotype(*(other.get(n, lambda x: x)(getattr(cell, n)) for n in ("nodes", "concat")))
    after = Genotype(changed, before.reduce)
    for compare in (
        lambda: genotype_changes(before, after),
        lambda: draw_genotype(before, tmp_path / "x", after=after, title="x"),
    ):
        with pytest.raises(ValueError, match="differ in more than their operations") as error:
            compare()
        assert place in str(error.value)
    assert not list(tmp_path.iterdir())


def test_formats(tmp_path):
    files = draw_genotype(published("resblock"), tmp_path / "a.b", title="x", formats=("png", "svg", "pdf"))
    assert [p.name for p in files] == ["a.b.png", "a.b.svg", "a.b.pdf"]
    assert [p.read_bytes()[:5] for p in files][1:] == [b"<?xml", b"%PDF-"]
    with pytest.raises(ValueError, match="unknown format 'gif'"):
        draw_genotype(published("resblock"), tmp_path / "x", title="x", formats=("gif",))


def test_titles_are_text(tmp_path):
    (path,) = draw_genotype(published("enas"), tmp_path / "x", title="<script> $\\frac{ $a_b$", formats=("svg",))
    assert "<script>" not in path.read_text()
    assert any("<script> $\\frac{ $a_b$" in (e.text or "") for e in ElementTree.parse(path).iter())


def test_a_layout_has_no_needless_crossings():
    # This chain with a null edge to each node can be drawn without one: the first input's wire runs above.
    layout = lay_out(published("vgg_cell").normal, 1.0)
    passing = {wire.bend[1] for wire in layout.wires if wire.end != wire.bend}
    assert len(passing) == 1
    assert passing.pop() < min(y for _, y in layout.operations.values())


def test_what_a_cell_computes_does_not_move_its_parts():
    for before, after in PAIRS:
        assert lay_out(published(before).normal, 1.0) == lay_out(published(after).normal, 1.0)

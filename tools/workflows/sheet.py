"""Builder of workflow files: nodes, connections, groups and notes, arranged without overlap."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

GAP, COLUMN_GAP, GROUP_GAP = 30, 20, 20  # pixels between nodes of a column, columns, groups
TITLE, PADDING, GROUP_TITLE = 30, 20, 50  # title bar of a node, padding and title of a group
SLOT, WIDGET, TEXT, PICTURE = 20, 24, 100, 230  # heights of a socket, a widget, a text box, an image
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
MUTED = 2
COLORS = {"blue": "#3f5f8a", "green": "#3f7a5a", "purple": "#6a4f8a", "orange": "#8a6a3f", "grey": "#555555"}
NOTE_COLORS = {"color": "#2b3648", "bgcolor": "#1f2836"}
SHOWS = {
    "PreviewImage": 290, "MaskPreview": PICTURE, "SaveVideo": PICTURE, "PreviewAny": 160,
    "LoadImage": 215, "LoadAudio": 60, "LoadVideo": 240,
}  # fmt: skip  # heights of what nodes show besides their inputs
HEIGHTS = {
    "BYA_AudioEncode": 215, "BYA_BestTake": 920, "BYA_BindingReport": 520, "BYA_Dub": 465, "BYA_EmbeddingRouter": 570,
    "BYA_FaceEncode": 165, "BYA_Loader": 200, "BYA_MaskOverlay": 365, "BYA_MaskRefine": 620, "BYA_Preflight": 620,
    "BYA_Sampler": 680, "BYA_Scene": 720, "BYA_Script": 460, "BYA_ScriptLines": 275, "BYA_VideoReport": 640,
}  # fmt: skip  # with their results, of nodes whose inputs are folded and hidden by the page
NodeInfo = dict[str, Any]


@dataclass(frozen=True)
class Wire:
    """An output of a node."""

    node: Node
    slot: int


@dataclass(eq=False)
class Node:
    """One node of a sheet.

    Args:
        number: Node id.
        kind: Node class, "MarkdownNote" for a note.
        info: Definition of the class from the server; empty for a note.
        inputs: Input -> `Wire` or widget value; others keep their defaults.
        title: Title; `None` is the name of the class.
        width, height: Size in pixels without the title bar.
        mode: 0, or `MUTED`.
    """

    number: int
    kind: str
    info: NodeInfo
    inputs: dict[str, Any]
    title: str | None
    width: int
    height: int
    mode: int = 0
    position: tuple[int, int] = (0, 0)

    def __getitem__(self, name: str) -> Wire:
        """The output of that name."""
        return Wire(self, self.info["output_name"].index(name))

    def described(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(name, type, options) of each input, in the order of the page."""
        yield from described_inputs(self.info)


def described_inputs(info: NodeInfo) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, type, options) of each input of a node class, in the order of the page."""
    for kind in ("required", "optional"):
        for name in info["input_order"].get(kind, []):
            declared = info["input"][kind][name]
            options = declared[1] if len(declared) > 1 else {}
            yield name, "COMBO" if isinstance(declared[0], list) else declared[0], options


def is_widget(kind: str, options: dict[str, Any]) -> bool:
    """Whether an input has a widget in the node, or only a socket."""
    return kind in WIDGET_TYPES and not options.get("forceInput")


@dataclass
class Group:
    """A titled group of nodes in columns."""

    title: str
    columns: Sequence[Sequence[Node]]
    color: str = "blue"
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass
class Sheet:
    """A workflow.

    Args:
        name: File name without extension.
        infos: Node class -> definition (`GET /object_info`).
        note: Text of its note, in Markdown.
    """

    name: str
    infos: dict[str, NodeInfo]
    note: str = ""
    nodes: list[Node] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def add(
        self, kind: str, title: str | None = None, *, wide: int = 320, high: int = 0, muted: bool = False, **inputs: Any
    ) -> Node:
        """Add a node; missing inputs keep their defaults."""
        info = self.infos[kind]
        known = {name for name, _, _ in described_inputs(info)}
        if unknown := set(inputs) - known:
            raise ValueError(f"{kind} has no input {sorted(unknown)}")
        mode = MUTED if muted else 0
        node = Node(len(self.nodes) + 1, kind, info, inputs, title, wide, high or _height(info, kind), mode)
        self.nodes.append(node)
        return node

    def read_me(self, *, wide: int = 420) -> Node:
        """Add the note."""
        lines = sum(1 + len(line) * 6 // wide for line in self.note.splitlines())
        info: NodeInfo = {"output": [], "output_name": [], "input_order": {}, "input": {}}
        node = Node(len(self.nodes) + 1, "MarkdownNote", info, {"": self.note}, "Read me", wide, 100 + 14 * lines)
        self.nodes.append(node)
        return node

    def arrange(self, columns: Sequence[Sequence[Group]]) -> None:
        """Place groups in columns from left to right."""
        x = 0
        for column in columns:
            y, widest = 0, 0
            for group in column:
                width, height = _place(group, x, y)
                self.groups.append(group)
                y += height + GROUP_GAP
                widest = max(widest, width)
            x += widest + GROUP_GAP

    def to_json(self) -> dict[str, Any]:
        """The workflow in ComfyUI's file format 0.4."""
        links: list[list[Any]] = []
        inputs: dict[int, list[dict[str, Any]]] = {}
        for node in self.nodes:
            inputs[node.number] = []
            for name, kind, options in node.described():
                value, widget = node.inputs.get(name), is_widget(kind, options)
                connected = isinstance(value, Wire)
                if widget and not connected:
                    continue
                entry: dict[str, Any] = {"name": name, "type": kind, "link": None}
                if widget:
                    entry["widget"] = {"name": name}
                if connected:
                    entry["link"] = len(links) + 1
                    slot, type_ = len(inputs[node.number]), value.node.info["output"][value.slot]
                    links.append([entry["link"], value.node.number, value.slot, node.number, slot, type_])
                inputs[node.number].append(entry)
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"bind-your-avatar/workflows/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._node(order, node, inputs[node.number], links) for order, node in enumerate(self.nodes)],
            "links": links,
            "groups": [
                {"id": number, "title": group.title, "bounding": list(group.box), "color": COLORS[group.color],
                 "font_size": 24, "flags": {}}
                for number, group in enumerate(self.groups, 1)
            ],
            "config": {},
            "extra": {"ds": {"scale": 0.8, "offset": [90, 120]}},  # below the menu of the page
            "version": 0.4,
        }  # fmt: skip

    @staticmethod
    def _node(order: int, node: Node, inputs: list[dict[str, Any]], links: list[list[Any]]) -> dict[str, Any]:
        outputs = []
        for slot, (name, kind) in enumerate(zip(node.info["output_name"], node.info["output"], strict=True)):
            connected = [link[0] for link in links if link[1:3] == [node.number, slot]]
            outputs.append({"name": name, "type": kind, "links": connected or None})
        entry: dict[str, Any] = {
            "id": node.number,
            "type": node.kind,
            "pos": list(node.position),
            "size": [node.width, node.height],
            "flags": {},
            "order": order,
            "mode": node.mode,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {"Node name for S&R": node.kind},
            "widgets_values": list(_widget_values(node)),
        }
        if node.title is not None:
            entry["title"] = node.title
        if node.kind == "MarkdownNote":
            entry |= {"properties": {}, **NOTE_COLORS}
        return entry


def _widget_values(node: Node) -> Iterator[Any]:
    if node.kind == "MarkdownNote":
        yield node.inputs[""]
        return
    for name, kind, options in node.described():
        if not is_widget(kind, options):
            continue
        value = node.inputs.get(name)
        yield default_of(kind, options, node.info, name) if value is None or isinstance(value, Wire) else value
        if options.get("control_after_generate"):
            yield "fixed"
    if node.kind == "LoadImage":
        yield "image"  # upload folder


def default_of(kind: str, options: dict[str, Any], info: NodeInfo, name: str) -> Any:
    """Default value of a widget."""
    if "default" in options:
        return options["default"]
    if kind == "COMFY_DYNAMICCOMBO_V3":
        return options["options"][0]["key"]
    declared = (info["input"].get("required", {}) | info["input"].get("optional", {}))[name][0]
    choices = declared if isinstance(declared, list) else options.get("options", [])
    return choices[0] if choices else ""


def _height(info: NodeInfo, kind: str) -> int:
    """Height of a node without its title bar."""
    if kind in HEIGHTS:
        return HEIGHTS[kind]
    sockets = widgets = texts = 0
    for _, type_, options in described_inputs(info):
        if not is_widget(type_, options):
            sockets += 1
        elif options.get("multiline"):
            texts += 1
        else:
            widgets += 1 + bool(options.get("control_after_generate"))
    rows = max(sockets, len(info["output"])) * SLOT + widgets * WIDGET + texts * TEXT
    return rows + 26 + SHOWS.get(kind, 0)


def _place(group: Group, x: int, y: int) -> tuple[int, int]:
    """Position a group and its nodes; returns its width and height."""
    left, bottom = x + PADDING, y
    for column in group.columns:
        top = y + GROUP_TITLE
        for node in column:
            node.position = (left, top + TITLE)
            top += TITLE + node.height + GAP
        bottom = max(bottom, top - GAP)
        left += max(node.width for node in column) + COLUMN_GAP
    width, height = left - COLUMN_GAP + PADDING - x, bottom + PADDING - y
    group.box = (x, y, width, height)
    return width, height

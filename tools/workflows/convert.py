"""Conversion of workflow files to the API format, as done by ComfyUI's page."""

from __future__ import annotations

from typing import Any

from tools.workflows.sheet import MUTED, NodeInfo, described_inputs, is_widget

NOTES = ("MarkdownNote", "Note")
BYPASSED = 4


def to_api(workflow: dict[str, Any], infos: dict[str, NodeInfo]) -> dict[str, dict[str, Any]]:
    """API format of a workflow, without notes and muted nodes.

    Raises:
        ValueError: A bypassed node, or widget values that do not fit the class.
    """
    origin = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph: dict[str, dict[str, Any]] = {}
    running = [node for node in workflow["nodes"] if node["type"] not in NOTES and node["mode"] != MUTED]
    for node in running:
        if node["mode"] == BYPASSED:
            raise ValueError(f"node {node['id']} is bypassed")
        graph[str(node["id"])] = {
            "inputs": _inputs(node, infos[node["type"]], origin),
            "class_type": node["type"],
        }
    for node in graph.values():
        for name, value in list(node["inputs"].items()):
            if isinstance(value, list) and value[0] not in graph:
                del node["inputs"][name]  # output of a muted node
    return graph


def _inputs(node: dict[str, Any], info: NodeInfo, origin: dict[int, list[Any]]) -> dict[str, Any]:
    connected = {entry["name"]: origin[entry["link"]] for entry in node["inputs"] if entry["link"] is not None}
    values = iter(node["widgets_values"])
    inputs: dict[str, Any] = {}
    for name, kind, options in described_inputs(info):
        if is_widget(kind, options):
            try:
                inputs[name] = next(values)
            except StopIteration as end:
                raise ValueError(f"node {node['id']} ({node['type']}) has no value for {name}") from end
            if options.get("control_after_generate"):
                next(values)
        if name in connected:
            inputs[name] = connected[name]
    left = list(values)
    if left and node["type"] != "LoadImage":
        raise ValueError(f"node {node['id']} ({node['type']}) has more values than widgets: {left}")
    return inputs

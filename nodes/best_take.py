"""BYA Best Take."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from comfy_api.latest import io

from bya_core.config import ProbeConfig, SamplingConfig

from . import checks, host, types
from .sampler import video_outputs, video_results
from .schema import schema, widget

if TYPE_CHECKING:
    from bya_core.config import Preset

log = logging.getLogger(__name__)
TAKES, KEEP = 4, 2


class BestTake(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "BestTake",
            "BYA Best Take",
            "Tries several seeds, finishes those with the best masks, and returns the video in which the voices are "
            "bound best, with a table of all seeds. Replaces router and sampler.",
            folder="video",
            search_aliases=["seeds", "batch", "choose", "generate", "talking video", "lip sync", "multi speaker"],
            has_intermediate_output=True,
            inputs=[
                types.Scene.Input("scene", tooltip="From BYA Scene; its seed is the first one. A video of one window."),
                widget(
                    ProbeConfig,
                    "num_takes",
                    default=TAKES,
                    min=2,
                    tooltip="Seeds that are tried, from that of the scene on. Only their first steps are run.",
                ),
                widget(
                    ProbeConfig,
                    "num_takes",
                    "keep",
                    default=KEEP,
                    tooltip="How many of them, those with the best masks, are finished and measured. 1 is fastest: "
                    "the masks alone decide.",
                ),
                widget(SamplingConfig, "preset", optional=True),
                widget(SamplingConfig, "spatial", optional=True),
            ],
            outputs=[
                *video_outputs(),
                io.String.Output("table", tooltip="All seeds, the best first, with masks, binding and cost."),
                io.Int.Output("seed", tooltip="Seed of the best take."),
                types.Routing.Output(
                    "routing",
                    tooltip="Masks of the best take: connect to BYA Mask Refine and BYA Sampler to edit them.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, num_takes: int | None = None, keep: int | None = None) -> bool | str:
        from bya_core.pipelines.takes import Selection

        return checks.validate(lambda: None if num_takes is None or keep is None else Selection(num_takes, keep))

    @classmethod
    @host.plain_errors
    def execute(
        cls, scene: types.SceneValue, num_takes: int, keep: int, preset: Preset = "exact", spatial: bool = False
    ) -> io.NodeOutput:
        from bya_core.pipelines.interactive import routing_preview
        from bya_core.pipelines.takes import Selection, check_takes, cost_text, generate_takes

        model, core = scene.model, types.with_sampling(scene.scene, preset, spatial)
        selection = Selection(num_takes, keep)
        check_takes(core, model.bundle)
        cost = cost_text(core, selection)
        log.info("%s", cost)
        host.show_text(cost)
        with host.running(model, core):
            takes = generate_takes(core, model.bundle, selection, host.progress_callback(model, core))
            preview = routing_preview(takes.routing, takes.prepared.scene, model.bundle)
        prepared, routing = host.to_cpu(takes.prepared), host.to_cpu(takes.routing)
        value = types.RoutingValue(model, prepared, routing, preview=preview)
        table = f"{takes.table()}\n{takes.calls} transformer calls in total"
        outputs, shown = video_results(takes.videos[0], prepared.scene, model, scene.scene.notices)
        shown["bya_table"] = [table]
        return io.NodeOutput(*outputs, table, takes.rows[0].seed, value, ui=shown)
